package agent

// PortName is the name of the agent's port, as the guest's kernel shows it in /sys/class/virtio-ports/*/name.
const PortName = "docker-usermode-linux.agent"

// Names of the requests that the agent answers to the supervisor (Client.Call).
const (
	// RequestStatus takes a StatusRequest and is answered with a Status.
	RequestStatus = "status"
	// RequestPowerOff asks the guest for an orderly end. The answer, a PowerOff, comes at once; the end is that of the
	// kernel.
	RequestPowerOff = "poweroff"
	// RequestSetTime takes a SetTime.
	RequestSetTime = "settime"
)

// StatusRequest says what a Status is to look for.
type StatusRequest struct {
	// Ports are TCP ports of the guest, on which somebody is expected to listen.
	Ports []uint16 `json:"ports,omitempty"`
}

// Status is how the guest is, as its agent sees it.
type Status struct {
	// Kernel is its release, as of uname -r.
	Kernel string `json:"kernel"`
	// Uptime of the kernel in seconds.
	Uptime float64 `json:"uptime"`
	// CPUs that are online.
	CPUs int `json:"cpus"`
	// MemTotal and MemAvailable are those of /proc/meminfo, in bytes.
	MemTotal     uint64 `json:"mem_total"`
	MemAvailable uint64 `json:"mem_available"`
	// OOMKills is how many processes the guest's kernel has killed because it was out of memory.
	OOMKills uint64 `json:"oom_kills"`
	// Load is the load average of the last minute.
	Load float64 `json:"load"`
	// Init is the program that runs as process 1.
	Init InitStatus `json:"init"`
	// Silent are those of the ports asked for on which nobody listens.
	Silent []uint16 `json:"silent,omitempty"`
}

// InitStatus is what is known of process 1.
type InitStatus struct {
	// Name of the init system: systemd, runit, openrc, sysvinit, busybox, none (ours), or that of the program.
	Name string `json:"name"`
	// Up says that it has started what it starts at boot. An init of which that cannot be known is up.
	Up bool `json:"up"`
	// Detail is what the init says of itself, such as systemd's "degraded".
	Detail string `json:"detail,omitempty"`
}

// PowerOff says how the guest was asked for its end.
type PowerOff struct {
	// By is what was done, such as "SIGRTMIN+4 to systemd".
	By string `json:"by"`
}

// SetTime sets the guest's clock.
type SetTime struct {
	// Time in nanoseconds since 1970, UTC.
	Time int64 `json:"time"`
}
