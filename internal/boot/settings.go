// Package boot carries what the supervisor hands to the guest stage: the initramfs archive with the guest
// binary, and the settings of this one boot, which travel inside it and so never show on a command line,
// in the environment of a process or on a disk.
package boot

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// SettingsPath is where the guest stage finds its settings in the initramfs.
const SettingsPath = "/settings.json"

// Settings is all that the guest stage has to know of one boot.
type Settings struct {
	// Modules are the names of files in ModulesDir, in the order in which they are to be loaded. Set by Initramfs.
	Modules []string `json:"modules,omitempty"`
	// Hostname becomes the guest's; empty leaves the root file system's own.
	Hostname string `json:"hostname,omitempty"`
	// Network is nil for a guest without a network.
	Network *Network `json:"network,omitempty"`
	// Hosts go into hosts(5), after the guest's own.
	Hosts []HostsEntry `json:"hosts,omitempty"`
	// RootPassword in clear text; empty means that the password login of root is to be off.
	RootPassword string `json:"root_password,omitempty"`
	// DefaultPassword is the publicly documented password. A root account that still has it is closed again
	// as soon as RootPassword is empty.
	DefaultPassword string `json:"default_password,omitempty"`
	// PasswordForced says that the user chose RootPassword: it then replaces whatever password root has.
	// Otherwise it is set only where root has none.
	PasswordForced bool `json:"password_forced,omitempty"`
	// LoginUnasked says that the empty RootPassword is nobody's choice: the guest is there for one command. Then a way in is
	// only taken back, the publicly documented password and keys of a boot before, and nothing else is written.
	LoginUnasked bool `json:"login_unasked,omitempty"`
	// Command says that the guest is there for a command that the agent is to run: it ends where that cannot be.
	Command bool `json:"command,omitempty"`
	// NoInit has the guest stage stay as process 1, whatever init the root file system has.
	NoInit bool `json:"no_init,omitempty"`
	// Ephemeral has all that is written to the root file system kept in the guest's RAM.
	Ephemeral bool `json:"ephemeral,omitempty"`
	// SSH has the agent serve port 22 where the root file system has no SSH server.
	SSH bool `json:"ssh,omitempty"`
	// AuthorizedKeys are lines of an authorized_keys file (sshd(8)) for root.
	AuthorizedKeys []string `json:"authorized_keys,omitempty"`
}

// KeysOnly says that SSH is to take no passwords: there are keys, and no password was asked for.
func (s Settings) KeysOnly() bool {
	return s.RootPassword == "" && len(s.AuthorizedKeys) > 0
}

// Network is the static configuration of the guest's only NIC.
type Network struct {
	// Device is the name that the NIC gets, whatever the kernel called it.
	Device string `json:"device"`
	// Addresses of the guest, of either family. The first one is the host name's in hosts(5).
	Addresses []Address `json:"addresses,omitempty"`
	// Nameservers and Search go into resolv.conf(5), Options too ("ndots:2"). They stay as they are at boot. The relay is
	// to be named by its IPv4 address alone: by its IPv6 one it is the same relay, and a C library that knows both asks
	// twice whenever an answer is late or bad (glibc) or every time (musl). Guests without IPv4 learn the other one by
	// router advertisements and DHCPv6.
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	Search      []string     `json:"search,omitempty"`
	Options     []string     `json:"options,omitempty"`
}

// Address is one of the NIC's.
type Address struct {
	// Prefix is the address with the length of its prefix.
	Prefix netip.Prefix `json:"prefix"`
	// Gateway is the next hop of the family's default route; invalid: there is none.
	Gateway netip.Addr `json:"gateway"`
}

// ParseSettings reads what Marshal wrote.
func ParseSettings(data []byte) (Settings, error) {
	var s Settings
	if err := json.Unmarshal(data, &s); err != nil {
		return Settings{}, fmt.Errorf("parse %s: %w", SettingsPath, err)
	}
	return s, nil
}

// Marshal is the inverse of ParseSettings.
func (s Settings) Marshal() ([]byte, error) {
	return json.Marshal(s)
}
