//go:build linux

package main

import (
	"strconv"
	"strings"
	"time"
)

// umlDefaultRoot is what UML adds to a command line without root=: the first of its block devices.
const umlDefaultRoot = "98:0"

// defaultRootWait is how long a root device may take to appear. UML's own devices are there before init; this is
// for one that is plugged in over mconsole.
const defaultRootWait = 2 * time.Second

// cmdline is what this stage reads from the kernel's command line, see
// Documentation/admin-guide/kernel-parameters.txt. As for the kernel, the last of several wins.
type cmdline struct {
	init       string        // init=, "" to look for one
	root       string        // root=, "" for the default
	rootTypes  []string      // rootfstype=, in the order in which they are to be tried
	rootFlags  string        // rootflags=
	rootWait   time.Duration // rootwait=
	readOnly   bool          // ro
	unreadable []string      // parameters of ours with a value that makes no sense
}

// parseCmdline reads the content of /proc/cmdline. Unlike the kernel's, its default is rw: the guest's disk is a
// directory, which no fsck(8) needs to have for itself first.
func parseCmdline(text string) cmdline {
	c := cmdline{rootWait: defaultRootWait}
	for _, param := range splitParams(text) {
		key, value, _ := strings.Cut(param, "=")
		switch key {
		case "--":
			return c // what follows is for init
		case "init":
			c.init = value
		case "root":
			c.root = value
			if value == umlDefaultRoot {
				c.root = ""
			}
		case "rootfstype":
			c.rootTypes = strings.FieldsFunc(value, func(r rune) bool { return r == ',' })
		case "rootflags":
			c.rootFlags = value
		case "rootwait":
			seconds, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				c.unreadable = append(c.unreadable, param)
				continue
			}
			c.rootWait = time.Duration(seconds) * time.Second
		case "ro":
			c.readOnly = true
		case "rw":
			c.readOnly = false
		}
	}
	return c
}

// splitParams splits at white space outside double quotes and drops the quotes, as the kernel's next_arg() does:
// they may enclose a value or a whole parameter.
func splitParams(text string) []string {
	var params []string
	var b strings.Builder
	quoted, started := false, false
	for i := range len(text) {
		switch ch := text[i]; {
		case ch == '"':
			quoted, started = !quoted, true
		case !quoted && strings.IndexByte(" \t\n\v\f\r", ch) >= 0:
			if started {
				params = append(params, b.String())
			}
			b.Reset()
			started = false
		default:
			b.WriteByte(ch)
			started = true
		}
	}
	if started {
		params = append(params, b.String())
	}
	return params
}
