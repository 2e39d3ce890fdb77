package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestCommandFailures(t *testing.T) {
	c := startGuest(t)
	dir := newTree(t, map[string]string{"plain": "x", "bad": "#!/nonexistent\n", "noformat": "x"})
	for _, name := range []string{"bad", "noformat"} {
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		command Command
		code    int
		stderr  string
	}{
		{Command{Args: []string{"no-such-program"}}, 127, "guest: no-such-program: not found\n"},
		{Command{Args: []string{"/no/such/program"}}, 127, "guest: /no/such/program: not found\n"},
		{Command{Args: []string{dir + "/bad"}}, 127, "guest: " + dir + "/bad: its interpreter is not found\n"},
		{Command{Args: []string{"./bad"}, Dir: dir}, 127, "guest: ./bad: its interpreter is not found\n"},
		{Command{Args: []string{dir + "/plain"}}, 126, "guest: " + dir + "/plain: permission denied\n"},
		{Command{Args: []string{"plain"}, Env: []string{"PATH=" + dir}}, 126, "guest: plain: permission denied\n"},
		{Command{Args: []string{dir + "/noformat"}}, 126, "guest: " + dir + "/noformat: exec format error\n"},
		{Command{Args: []string{dir}}, 126, "guest: " + dir + ": permission denied\n"},
		{Command{Args: []string{"true"}, Dir: "/no/such"}, 125, "guest: working directory /no/such: no such file or directory\n"},
		{Command{Args: []string{"true"}, Dir: dir + "/plain"}, 125, "guest: working directory " + dir + "/plain: not a directory\n"},
		{Command{Args: []string{"true"}, User: "no-such-user"}, 125, "guest: no user \"no-such-user\" in /etc/passwd of the guest\n"},
		{Command{Args: []string{"true"}, User: "0:no-such-group"}, 125, "guest: no group \"no-such-group\" in /etc/group of the guest\n"},
		{Command{Args: []string{"true"}, User: "0:"}, 125, "guest: user \"0:\" has an empty group, want USER or USER:GROUP\n"},
	}
	for _, tt := range tests {
		_, stderr, code := run(t, c.Client, tt.command, nil)
		if code != tt.code || stderr != tt.stderr {
			t.Errorf("%+v: code %d, stderr %q, want %d, %q", tt.command, code, stderr, tt.code, tt.stderr)
		}
	}
	if got, _, code := run(t, c.Client, Command{Args: []string{"no-such"}, PTY: &PTY{}}, nil); code != 127 || got != "" {
		t.Errorf("with a terminal: code %d, stdout %q", code, got)
	}
}

func TestCommandChecks(t *testing.T) {
	c := startGuest(t)
	many := make([]string, maxEnv+1)
	for i := range many {
		many[i] = "A=1"
	}
	for name, command := range map[string]Command{
		"NUL":      {Args: []string{"a\x00"}},
		"empty":    {Args: []string{""}},
		"env":      {Args: []string{"a"}, Env: []string{"x"}},
		"env name": {Args: []string{"a"}, Env: []string{"=x"}},
		"env NUL":  {Args: []string{"a"}, Env: []string{"a=\x00"}},
		"many":     {Args: []string{"a"}, Env: many},
		"relative": {Args: []string{"a"}, Dir: "b"},
		"long":     {Args: []string{strings.Repeat("a", maxCommand)}},
		"UTF-8":    {Args: []string{"\xff"}},
		"TERM":     {Args: []string{"a"}, PTY: &PTY{Term: "\x00"}},
	} {
		code, err := c.Run(t.Context(), command, Streams{})
		if err == nil || code != 125 {
			t.Errorf("%s: code %d, %v, want 125 and an error", name, code, err)
		}
	}
	if stdout, _, _ := run(t, c.Client, sh("echo ${#1}", strings.Repeat("a", 100_000)), nil); stdout != "100000\n" {
		t.Errorf("an argument of 100000 bytes arrives with %s", stdout)
	}
}

func TestEnvironment(t *testing.T) {
	c := startGuest(t)
	command := Command{
		Args: []string{"/usr/bin/env"}, Dir: "/usr",
		Env: []string{"A=1", "A=2", "B=x y=z", "PATH=/bin", "C="},
	}
	got := make(map[string]string)
	stdout, _, _ := run(t, c.Client, command, nil)
	for line := range strings.Lines(stdout) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if _, twice := got[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		got[name] = value
	}
	for name, want := range map[string]string{"A": "2", "B": "x y=z", "PATH": "/bin", "C": ""} {
		if got[name] != want {
			t.Errorf("%s = %q, want %q", name, got[name], want)
		}
	}
	if _, ok := got["TERM"]; ok || got["HOME"] == "" || got["SHELL"] == "" {
		t.Errorf("environment %q", got)
	}
	if stdout, _, _ := run(t, c.Client, Command{Args: []string{"pwd"}, Dir: "/usr"}, nil); stdout != "/usr\n" {
		t.Errorf("pwd = %q, want /usr", stdout)
	}
	if stdout, _, _ := run(t, c.Client, Command{Args: []string{"bin/env", "echo", "x"}, Dir: "/usr"}, nil); stdout != "x\n" {
		t.Errorf("a relative path: %q, want x", stdout)
	}
}

// TestCleanProcess is what a command inherits.
func TestCleanProcess(t *testing.T) {
	c := startGuest(t)
	stdout, _, _ := run(t, c.Client, Command{Args: []string{"cat", "/proc/self/status", "/proc/self/oom_score_adj"}}, nil)
	for _, line := range []string{"SigBlk", "SigPnd"} {
		if !strings.Contains(stdout, line+":\t0000000000000000\n") {
			t.Errorf("%s is not empty: %s", line, stdout)
		}
	}
	_, ignored, _ := strings.Cut(stdout, "SigIgn:\t")
	set, err := strconv.ParseUint(strings.SplitN(ignored, "\n", 2)[0], 16, 64)
	if err != nil || set&(1<<(syscall.SIGPIPE-1)) != 0 {
		t.Errorf("SigIgn %x, %v, want none of SIGPIPE", set, err)
	}
	if lines := strings.Fields(stdout); strings.HasPrefix(lines[len(lines)-1], "-") {
		t.Errorf("protected from the OOM killer")
	}
	stdout, _, _ = run(t, c.Client, sh(`cut -d" " -f1,5,6 /proc/$$/stat`), nil)
	if f := strings.Fields(stdout); len(f) != 3 || f[0] != f[1] || f[0] != f[2] {
		t.Errorf("pid, group, session = %q, want a leader", stdout)
	}
}

// TestUsers runs commands as others.
func TestUsers(t *testing.T) {
	needRoot(t)
	home := t.TempDir()
	for dir := home; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(home, "secret")
	if err := os.Mkdir(secret, 0o700); err != nil {
		t.Fatal(err)
	}
	c := startGuest(t)
	c.server.accounts.root = newTree(t, map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nu:x:4321:4322:U:" + home + ":/bin/sh\n77:x:4323:4322::/nowhere:\n",
		"etc/group":  "a:x:4322:\nb:x:4400:x,u\nc:x:4401:u,y\nd:x:4401:u\ntty:x:5:\n",
	})
	const id = "id -u; id -g; id -G; pwd; echo $HOME $USER $LOGNAME $SHELL $PATH"
	const userPath, rootPath = "/usr/local/bin:/usr/bin:/bin", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	tests := []struct{ user, want string }{
		{"u", "4321\n4322\n4322 4400 4401\n" + home + "\n" + home + " u u /bin/sh " + userPath + "\n"},
		{"4321", "4321\n4322\n4322 4400 4401\n" + home + "\n" + home + " u u /bin/sh " + userPath + "\n"},
		{"u:b", "4321\n4400\n4400\n" + home + "\n" + home + " u u /bin/sh " + userPath + "\n"},
		{"u:99", "4321\n99\n99\n" + home + "\n" + home + " u u /bin/sh " + userPath + "\n"},
		{"77", "4323\n4322\n4322\n/\n/nowhere 77 77 /bin/sh " + userPath + "\n"},
		{"5000", "5000\n0\n0\n/\n/ /bin/sh " + userPath + "\n"},
		{"5000:6000", "5000\n6000\n6000\n/\n/ /bin/sh " + userPath + "\n"},
		{"root", "0\n0\n0\n/root\n/root root root /bin/sh " + rootPath + "\n"},
		{":b", "0\n4400\n4400\n/root\n/root root root /bin/sh " + rootPath + "\n"},
	}
	for _, tt := range tests {
		command := sh(id)
		command.User = tt.user
		if stdout, stderr, _ := run(t, c.Client, command, nil); stdout != tt.want {
			t.Errorf("as %s: %q %q, want %q", tt.user, stdout, stderr, tt.want)
		}
	}
	// With a terminal that is theirs.
	command := sh("stat -c '%u %g %a' $(tty)")
	command.User, command.PTY = "u", &PTY{}
	if stdout, _, _ := run(t, c.Client, command, nil); stdout != "4321 5 620\r\n" {
		t.Errorf("owner of the terminal = %q", stdout)
	}
	for _, tt := range []struct {
		command Command
		code    int
	}{
		{Command{Args: []string{"true"}, User: "u", Dir: secret}, 125},
		{Command{Args: []string{"true"}, User: "u", Env: []string{"PATH=" + secret + ":/bin:/usr/bin"}}, 0},
		{Command{Args: []string{secret + "/x"}, User: "u"}, 126},
	} {
		if _, stderr, code := run(t, c.Client, tt.command, nil); code != tt.code {
			t.Errorf("%+v: code %d, want %d: %s", tt.command, code, tt.code, stderr)
		}
	}
	// No shell is one's own, for the server is as root as before.
	if stdout, _, _ := run(t, c.Client, sh("id -u"), nil); stdout != "0\n" {
		t.Errorf("id -u = %q afterwards", stdout)
	}
}

func TestLoginShell(t *testing.T) {
	c := startGuest(t)
	const script = "echo $0; id -u\n"
	c.server.accounts.root = newTree(t, map[string]string{
		"etc/passwd": fmt.Sprintf("u:x:%d:%d::/:/bin/sh\n", os.Getuid(), os.Getgid()),
	})
	stdout, stderr, code := run(t, c.Client, Command{}, strings.NewReader(script+"exit 6\n"))
	if want := "-sh\n"; code != 6 || !strings.Contains(stdout, want) {
		t.Errorf("login shell: code %d, %q %q, want 6, %q", code, stdout, stderr, want)
	}
}

func FuzzParseCommand(f *testing.F) {
	f.Add([]byte(`{"args":["a"],"env":["A=b"],"dir":"/","user":"root:0","pty":{"term":"x","rows":1,"cols":2}}`))
	f.Add([]byte(`{"args":["a"]}{}`))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"pty":{"rows":65536}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		command, err := parseCommand(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(command)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) > maxCommand {
			return // escapes are longer than what they stand for
		}
		other, err := parseCommand(again)
		if err != nil {
			t.Fatalf("parseCommand(%q) = %v", again, err)
		}
		if a, b := command.plan(&user{shell: "/bin/sh"}), other.plan(&user{shell: "/bin/sh"}); !reflect.DeepEqual(a, b) {
			t.Fatalf("plans %+v and %+v differ", a, b)
		}
	})
}
