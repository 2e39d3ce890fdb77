package uml

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/cpu"
)

// RestartMessage is what our kernel says on the notification socket when it restarts
// (kernel-config/patches/0006-um-mconsole-announce-a-restart.patch). No other kernel has it in it.
const RestartMessage = "kernel: restart"

// lookTimeout bounds the wait for a kernel that is asked for its configuration, which takes milliseconds.
const lookTimeout = 5 * time.Second

// amx says that the processor has AMX, whose registers are 8 KiB.
var amx = cpu.X86.HasAMXTile

// Features is what a kernel can do, as far as that can be told without booting it.
type Features struct {
	// Patched says that it has our patches.
	Patched bool
	// Modules are the files of those modules that we need, in the order in which they are to be loaded.
	Modules []string
	// options are those that are built in, or that Modules make up for.
	options map[string]bool
	// cramped is the version of a kernel without room for this processor's registers, "" of any other.
	cramped string
	// absent are the options whose modules were not found in searched: directories, and what is the matter with them.
	absent, searched []string
}

// Look finds out what a kernel can do, by its own answer to --showconfig.
func Look(path string) (Features, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--showconfig").Output()
	options := parseOptions(bytes.NewReader(out))
	if err == nil && len(options) == 0 {
		err = fmt.Errorf("it has no options of a User-Mode Linux")
	}
	if err != nil {
		return Features{}, fmt.Errorf("ask the kernel %s for its configuration: %w", path, err)
	}
	f := Features{options: map[string]bool{}}
	for option, value := range options {
		f.options[option] = value == builtIn
		if value == module && moduleOf[option] != "" {
			f.absent = append(f.absent, option)
		}
	}
	version, err := release(ctx, path)
	if amx && err == nil && olderThan(version, 6, 13) {
		f.cramped = version
	}
	if f.absent != nil {
		slices.Sort(f.absent) // the same order each time
		f.findModules(path, version, err)
	}
	f.Patched, err = holds(path, RestartMessage)
	return f, err
}

// findModules looks for the modules of the options that are absent, in the first directory that has any of them.
func (f *Features) findModules(kernel, version string, unknown error) {
	if unknown != nil {
		f.searched = []string{fmt.Sprintf("no directory: ask the kernel for its version: %v", unknown)}
		return
	}
	for _, dir := range moduleDirs(kernel, version) {
		found, err := readDependencies(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			dir = fmt.Sprintf("%s (%v)", dir, err)
		}
		f.searched = append(f.searched, dir)
		f.absent = slices.DeleteFunc(f.absent, func(option string) bool {
			if !found.usable(moduleOf[option]) {
				return false
			}
			f.Modules = found.load(f.Modules, moduleOf[option])
			f.options[option] = true
			return true
		})
		if f.Modules != nil { // those of another build do not fit
			f.searched = []string{dir}
			break
		}
	}
}

// olderThan says that a kernel's version, "6.1.176", is before major.minor.
func olderThan(version string, major, minor int) bool {
	var first, second int
	n, _ := fmt.Sscanf(version, "%d.%d", &first, &second)
	return n == 2 && (first < major || first == major && second < minor)
}

// The values of an option in a kernel's configuration.
const (
	builtIn = "y"
	module  = "m"
)

// parseOptions returns the options of a kernel's configuration (.config) that are built in, or built as modules.
func parseOptions(config io.Reader) map[string]string {
	options := map[string]string{}
	// A Reader rather than a Scanner: a line of any length ends nothing.
	for lines := bufio.NewReader(config); ; {
		line, err := lines.ReadString('\n')
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && (value == builtIn || value == module) && strings.HasPrefix(name, "CONFIG_") {
			options[strings.TrimPrefix(name, "CONFIG_")] = value
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
	missing := f.missing(agentOptions)
	if missing == nil {
		return nil
	}
	text := "commands in the guest and its health need a kernel with " + strings.Join(missing, " and ")
	if where := f.notFound(); where != "" {
		text += "; " + where
	}
	return errors.New(text)
}

// missing are those of options that it lacks: CONFIG_A=y, CONFIG_A where a module would do, or the name of such a module.
func (f Features) missing(options []string) (missing []string) {
	for _, option := range options {
		switch {
		case f.options[option]:
		case slices.Contains(f.absent, option):
			missing = append(missing, "module "+moduleOf[option])
		case moduleOf[option] != "":
			missing = append(missing, "CONFIG_"+option)
		default:
			missing = append(missing, "CONFIG_"+option+"="+builtIn)
		}
	}
	return missing
}

// notFound says where modules were looked for; "" if all were found.
func (f Features) notFound() string {
	if len(f.absent) == 0 {
		return ""
	}
	var names []string
	for _, option := range f.absent {
		names = append(names, moduleOf[option])
	}
	return fmt.Sprintf("not found as .ko, not compressed: module %s in %s", strings.Join(names, ", "), strings.Join(f.searched, ", "))
}

// Lacks says what a guest with such a kernel has to do without, a sentence for each thing.
func (f Features) Lacks() []string {
	var all []string
	if f.cramped != "" {
		// arch/x86/um/user-offsets.c, up to 6.12: HOST_FP_SIZE is 2,696 bytes, enough for AVX-512.
		all = append(all, fmt.Sprintf("Linux %s has no room for the registers of a processor with AMX, as this one is, and panics "+
			"as its first program starts; take one newer than 6.12, or ours", f.cramped))
	}
	if text := f.notFound(); text != "" {
		all = append(all, text)
	}
	for _, need := range []struct {
		options []string
		without string
	}{
		{[]string{"BLK_DEV_INITRD"}, "nothing of ours runs in the guest: no network, password, host name or agent is set up"},
		{[]string{"HOSTFS"}, "a directory cannot be its root file system; give a disk (DISK)"},
		{[]string{"MCONSOLE"}, "the guest cannot be stopped in order where its agent does not answer"},
		{[]string{"VIRTIO_UML", "VIRTIO_NET"}, "the guest has no network"},
		{[]string{"IPV6"}, "the guest has no IPv6"},
		{agentOptions, "no command can be run in the guest (exec, run), nor its health be told"},
		{[]string{"VIRTIO_UML", "VIRTIO_BALLOON"}, "memory that the guest has used once is not given back"},
		{[]string{"OVERLAY_FS", "TMPFS"}, "EPHEMERAL needs a disk (DISK)"},
	} {
		if missing := f.missing(need.options); missing != nil {
			all = append(all, fmt.Sprintf("without %s, %s", strings.Join(missing, " and "), need.without))
		}
	}
	if !f.Patched {
		all = append(all, "without our patches its RAM needs a tmpfs where programs can be executed, such as /dev/shm, a reboot of the "+
			"guest ends it, and system calls are slower")
	}
	return all
}
