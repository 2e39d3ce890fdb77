package uml

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// RestartMessage is what our kernel says on the notification socket when it restarts
// (kernel-config/patches/0006-um-mconsole-announce-a-restart.patch). No other kernel has it in it.
const RestartMessage = "kernel: restart"

// lookTimeout bounds the wait for a kernel that is asked for its configuration, which takes milliseconds.
const lookTimeout = 5 * time.Second

// Features is what a kernel can do, as far as that can be told without booting it.
type Features struct {
	// Patched says that it has our patches.
	Patched bool
	// options are those that are built in: a module is of no use, for nothing loads it before there is a root.
	options map[string]bool
}

// Look finds out what a kernel can do, by its own answer to --showconfig.
func Look(path string) (Features, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--showconfig").Output()
	f := Features{options: parseOptions(bytes.NewReader(out))}
	if err == nil && len(f.options) == 0 {
		err = fmt.Errorf("it has no options of a User-Mode Linux")
	}
	if err != nil {
		return Features{}, fmt.Errorf("ask the kernel %s for its configuration: %w", path, err)
	}
	f.Patched, err = holds(path, RestartMessage)
	return f, err
}

// parseOptions returns the options of a kernel's configuration (.config) that are built in.
func parseOptions(config io.Reader) map[string]bool {
	options := map[string]bool{}
	// A Reader rather than a Scanner: a line of any length ends nothing.
	for lines := bufio.NewReader(config); ; {
		line, err := lines.ReadString('\n')
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && value == "y" && strings.HasPrefix(name, "CONFIG_") {
			options[strings.TrimPrefix(name, "CONFIG_")] = true
		}
		if err != nil {
			return options
		}
	}
}

// holds says whether a file has a text in it.
func holds(path, text string) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	buf := make([]byte, 1<<20)
	for kept := 0; ; {
		n, err := file.Read(buf[kept:])
		data := buf[:kept+n]
		if bytes.Contains(data, []byte(text)) {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		kept = copy(buf, data[max(0, len(data)-len(text)+1):]) // the text may lie across two reads
	}
}

// agentOptions are what the agent's channel needs.
var agentOptions = []string{"VIRTIO_UML", "VIRTIO_CONSOLE"}

// CheckAgent is an error unless the kernel has what is needed to run commands in the guest, and to tell its health.
func (f Features) CheckAgent() error {
	if missing := f.missing(agentOptions); missing != nil {
		return fmt.Errorf("commands in the guest and its health need a kernel with %s built in", strings.Join(missing, " and "))
	}
	return nil
}

func (f Features) missing(options []string) (missing []string) {
	for _, option := range options {
		if !f.options[option] {
			missing = append(missing, "CONFIG_"+option)
		}
	}
	return missing
}

// Lacks says what a guest with such a kernel has to do without, a sentence for each thing.
func (f Features) Lacks() []string {
	var all []string
	for _, need := range []struct {
		options []string
		without string
	}{
		{[]string{"BLK_DEV_INITRD"}, "nothing of ours runs in the guest: no network, password, host name or agent is set up"},
		{[]string{"HOSTFS"}, "a directory cannot be its root file system; give a disk (DISK)"},
		{[]string{"MCONSOLE"}, "the guest cannot be stopped in order where its agent does not answer"},
		{[]string{"VIRTIO_UML", "VIRTIO_NET"}, "the guest has no network"},
		{agentOptions, "no command can be run in the guest (exec, run), nor its health be told"},
		{[]string{"VIRTIO_UML", "VIRTIO_BALLOON"}, "memory that the guest has used once is not given back"},
		{[]string{"OVERLAY_FS", "TMPFS"}, "EPHEMERAL needs a disk (DISK)"},
	} {
		if missing := f.missing(need.options); missing != nil {
			all = append(all, fmt.Sprintf("without %s built in, %s", strings.Join(missing, " and "), need.without))
		}
	}
	if !f.Patched {
		all = append(all, "without our patches its RAM needs a tmpfs where programs can be executed, such as /dev/shm, a reboot of the "+
			"guest ends it, and system calls are slower")
	}
	return all
}
