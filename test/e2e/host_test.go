package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// The program for hosts, and a tar of a root file system with systemd and an SSH server: make e2e takes both from the
// image.
var (
	hostProgram = os.Getenv("E2E_UML")
	hostRootfs  = os.Getenv("E2E_ROOTFS")
)

// asRoot is how a command is run as root.
func asRoot(t testing.TB) []string {
	t.Helper()
	if os.Geteuid() == 0 {
		return nil
	}
	if err := exec.Command("sudo", "-n", "true").Run(); err != nil {
		t.Skip("makes users: needs root, or sudo without a password")
	}
	return []string{"sudo", "-n"}
}

// admin runs a command as root.
func admin(t testing.TB, command ...string) {
	t.Helper()
	command = append(asRoot(t), command...)
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", command, err, out)
	}
}

// accounts is held while users change: the files have one lock, which no program waits for.
var accounts sync.Mutex

// hostUser is a user of this host who was not there before, with nothing but what a login gives him.
type hostUser struct {
	t        testing.TB
	name     string
	uid, gid string
	// dir has the user's home and his directory for what runs. Anyone may look into it.
	dir string
}

// newHostUser makes a user, with or without subordinate ids. He is gone at the test's end.
func newHostUser(t testing.TB, subIDs bool) *hostUser {
	t.Helper()
	if hostProgram == "" || hostRootfs == "" {
		t.Skip("E2E_UML and E2E_ROOTFS are not set: make e2e builds what they name and sets them")
	}
	asRoot(t)
	dir, err := os.MkdirTemp("", "e2e") // short: sockets will be in there
	if err != nil {
		t.Fatal(err)
	}
	u := &hostUser{t: t, name: fmt.Sprintf("e2e%s%d", runID, names.Add(1)), dir: dir}
	t.Cleanup(u.remove)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(hostProgram) // where it is, the user may have no way to
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(u.path("uml"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	u.add(subIDs)
	account, err := user.Lookup(u.name)
	if err != nil {
		t.Fatal(err)
	}
	u.uid, u.gid = account.Uid, account.Gid
	admin(t, "install", "-d", "-m", "700", "-o", u.uid, "-g", u.gid, u.path("home"), u.path("run"))
	return u
}

func (u *hostUser) path(name string) string { return filepath.Join(u.dir, name) }

// add makes the account.
func (u *hostUser) add(subIDs bool) {
	u.t.Helper()
	accounts.Lock()
	defer accounts.Unlock()
	admin(u.t, "useradd", "--no-create-home", "--home-dir", u.path("home"), "--shell", "/bin/sh", u.name)
	for _, kind := range []struct{ file, add, del string }{
		{"/etc/subuid", "--add-subuids", "--del-subuids"}, {"/etc/subgid", "--add-subgids", "--del-subgids"},
	} {
		own, free := subIDsOf(u.t, kind.file, u.name)
		switch {
		case subIDs && own == "":
			admin(u.t, "usermod", kind.add, fmt.Sprintf("%d-%d", free, free+65535), u.name)
		case !subIDs && own != "":
			admin(u.t, "usermod", kind.del, own, u.name)
		}
	}
}

// subIDsOf returns a user's range of subordinate ids, as usermod takes it, and where one that is nobody's may begin.
func subIDsOf(t testing.TB, file, name string) (own string, free int) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	free = 100_000
	for line := range strings.Lines(string(data)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 {
			continue
		}
		start, startErr := strconv.Atoi(fields[1])
		count, countErr := strconv.Atoi(fields[2])
		if startErr != nil || countErr != nil {
			continue
		}
		if fields[0] == name {
			own = fmt.Sprintf("%d-%d", start, start+count-1)
		}
		free = max(free, start+count)
	}
	return own, free
}

func (u *hostUser) remove() {
	accounts.Lock()
	defer accounts.Unlock()
	if _, err := user.Lookup(u.name); err == nil {
		admin(u.t, "userdel", u.name)
	}
	admin(u.t, "rm", "-rf", u.dir)
}

// uml is the program, run by the user in his home.
func (u *hostUser) uml(ctx context.Context, stdin string, args ...string) *exec.Cmd {
	u.t.Helper()
	command := append(asRoot(u.t), "setpriv", "--reuid", u.uid, "--regid", u.gid, "--init-groups", "--",
		"env", "-i", "-C", u.path("home"), "HOME="+u.path("home"), "XDG_RUNTIME_DIR="+u.path("run"), "USER="+u.name,
		"PATH=/usr/local/bin:/usr/bin:/bin", u.path("uml"))
	command = append(command, args...)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	return cmd
}

// run runs the program until it ends.
func (u *hostUser) run(stdin string, args ...string) (stdout, stderr string, code int) {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(u.t.Context(), hangGuard)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := u.uml(ctx, stdin, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		u.t.Fatalf("uml %q: %v\n%s\n%s", args, err, &out, &errs)
	}
	return strings.TrimSpace(out.String()), errs.String(), cmd.ProcessState.ExitCode()
}

// must is run for what is to succeed.
func (u *hostUser) must(args ...string) string {
	u.t.Helper()
	stdout, stderr, code := u.run("", args...)
	if code != 0 {
		u.t.Fatalf("uml %q: exit code %d\n%s\n%s", args, code, stdout, stderr)
	}
	return stdout
}

// want is must, and wants an output.
func (u *hostUser) want(want string, args ...string) {
	u.t.Helper()
	if got := u.must(args...); got != want {
		u.t.Errorf("uml %q = %q, want %q", args, got, want)
	}
}

// importRootfs has the root file system at home/guest, and returns what was said of it.
func (u *hostUser) importRootfs(options ...string) (said string) {
	u.t.Helper()
	archive, err := os.Open(hostRootfs)
	if err != nil {
		u.t.Fatal(err)
	}
	defer archive.Close()
	ctx, cancel := context.WithTimeout(u.t.Context(), hangGuard)
	defer cancel()
	cmd := u.uml(ctx, "", append(append([]string{"rootfs", "import"}, options...), "-", "guest")...)
	cmd.Stdin = archive
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "user namespaces are forbidden here") {
		u.t.Skipf("%s", out)
	}
	if err != nil {
		u.t.Fatalf("uml rootfs import: %v\n%s", err, out)
	}
	return string(out)
}

// up boots the guest in the background and returns the address of its SSH server.
func (u *hostUser) up(options ...string) (address string) {
	u.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		u.t.Fatal(err)
	}
	address = listener.Addr().String()
	listener.Close()
	u.t.Cleanup(func() {
		if u.t.Failed() {
			out, _, _ := u.inCleanup("logs", "guest")
			u.t.Logf("log of the guest:\n%s", out)
		}
		_, _, _ = u.inCleanup("kill", "guest") // nobody, most times
	})
	u.want("guest", append([]string{"up", "--rootfs", "guest", "-d", "--wait", "-p", address + ":22"}, options...)...)
	return address
}

// inCleanup is run when the test's context has ended.
func (u *hostUser) inCleanup(args ...string) (string, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), hangGuard)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := u.uml(ctx, "", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	return out.String(), errs.String(), err
}

// checkGone wants nothing of a guest left.
func (u *hostUser) checkGone() {
	u.t.Helper()
	u.want("", "ps", "-q")
	admin(u.t, "sh", "-c", `cd "$1" && test -z "$(ls | grep -v '^uml$')$(ls uml)" || { ls -laR; exit 1; }`, "sh", u.path("run"))
	// A stub may take a moment to end, with the kernel that it belongs to.
	waitFor(u.t, "the end of all processes of "+u.name, func() error {
		if out, err := exec.Command("pgrep", "-l", "-u", u.uid).Output(); err == nil {
			return fmt.Errorf("there are: %s", out)
		}
		return nil
	})
}

// hostWays are the ways of a root file system to have files of any owner.
var hostWays = []struct {
	name   string
	subIDs bool
	said   string
	isDir  bool
}{
	{"subids", true, "files get their true owners, by the subordinate ids", true},
	{"disk", false, "guest becomes a disk image", false},
}

// TestHost is what a normal user of a host has, without Docker: a guest on a root file system out of an archive, with files
// of any owner.
func TestHost(t *testing.T) {
	t.Parallel()
	for _, way := range hostWays {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			u := newHostUser(t, way.subIDs)
			if said := u.importRootfs(); !strings.Contains(said, way.said) || strings.Count(said, "\n") != 1 {
				t.Errorf("uml rootfs import says %q, want a line with %q", said, way.said)
			}
			testHostGuest(t, u)
			testHostRun(t, u)
			if out, err := u.ls("guest"); err != nil || strings.HasPrefix(out, "d") != way.isDir {
				t.Errorf("the root file system is %s, %v", out, err)
			}
			u.must("rootfs", "rm", "guest")
			if out, err := u.ls("guest"); err == nil {
				t.Errorf("removed, and still there: %s", out)
			}
			u.checkGone()
		})
	}
}

func (u *hostUser) ls(name string) (string, error) {
	command := append(asRoot(u.t), "ls", "-ld", filepath.Join(u.path("home"), name))
	out, err := exec.Command(command[0], command[1:]...).Output()
	return string(out), err
}

// testHostGuest has a guest of its own.
func testHostGuest(t *testing.T, u *hostUser) {
	t.Helper()
	address := u.up()
	var client *ssh.Client
	waitFor(t, "ssh", func() (err error) {
		client, err = dialSSH(address, ssh.Password(password))
		return err
	})
	defer client.Close()
	if got := remote(t, client, "id -un; hostname"); got != "root\nguest" {
		t.Errorf("by ssh: %q, want root on guest", got)
	}
	if got := remote(t, client, "systemctl is-system-running --wait || systemctl --failed"); got != "running" {
		t.Errorf("systemctl is-system-running = %q, want running", got)
	}
	u.want("guest", "ps", "-q")
	u.want("0", "exec", "guest", "id", "-u")
	u.want("33:42", "exec", "guest", "sh", "-c", "touch /kept && chown 33:42 /kept && stat -c %u:%g /kept")
	if got := u.must("ps"); !regexp.MustCompile(`(?m)^guest +running +\d+ .*` + regexp.QuoteMeta(address)).MatchString(got) {
		t.Errorf("uml ps:\n%s", got)
	}
	if _, stderr, code := u.run("", "run", "--rootfs", "guest", "true"); code != 1 || !strings.Contains(stderr, "as its root file system") {
		t.Errorf("uml run beside the guest: exit code %d, %s", code, stderr)
	}
	began := time.Now()
	u.want("guest 0", "stop", "guest")
	t.Logf("uml stop took %.1f s", time.Since(began).Seconds())
	u.checkGone()
}

// testHostRun has guests for one command each, on the root file system of testHostGuest.
func testHostRun(t *testing.T, u *hostUser) {
	t.Helper()
	on := func(args ...string) []string { return append([]string{"run", "--rootfs", "guest"}, args...) }
	began := time.Now()
	u.must(on("true")...)
	t.Logf("uml run true took %.2f s", time.Since(began).Seconds())
	stdout, stderr, code := u.run("", on("sh", "-c", "echo out; echo err >&2; exit 7")...)
	if stdout != "out" || stderr != "err\n" || code != 7 {
		t.Errorf("uml run: %q, %q, exit code %d, want out, err and 7", stdout, stderr, code)
	}
	if stdout, stderr, code := u.run("from stdin", on("cat")...); stdout != "from stdin" || code != 0 {
		t.Errorf("uml run cat: %q, %q, exit code %d", stdout, stderr, code)
	}
	// What the guest before has changed is there, and what the archive said.
	u.want("33:42\n0:42\n4755", on("sh", "-c", "stat -c %u:%g /kept /etc/shadow; stat -c %a /usr/bin/passwd")...)

	// Guests that keep nothing share a root file system.
	u.want("first", "up", "--rootfs", "guest", "--ephemeral", "-d", "--ports", "", "--name", "first")
	u.must(on("--ephemeral", "sh", "-c", "rm /kept && touch /gone && chown 33:42 /gone")...)
	u.want("first 0", "stop", "first")
	u.want("/kept", on("sh", "-c", "ls /kept /gone 2>/dev/null || true")...)

	// What an image says about how it is run holds without a command, and with one its environment.
	const image = `{"Env":["A=of the image"],"User":"33:42","WorkingDir":"/var","Cmd":["sh","-c","echo $A; id -u; pwd"]}`
	if _, stderr, code := u.run(image, on("sh", "-c", "cat >/.uml-image.json")...); code != 0 {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	u.want("of the image\n33\n/var", on()...)
	u.want("of the image root", on("-u", "0", "sh", "-c", "echo $A $(id -un)")...)
}

// TestHostPlain has neither subordinate ids nor a disk: the guest works as far as it goes, and the log says what is missing.
func TestHostPlain(t *testing.T) {
	t.Parallel()
	u := newHostUser(t, false)
	u.importRootfs("--ownership", "plain")
	stdout, stderr, code := u.run("", "run", "--rootfs", "guest", "sh", "-c", "touch /mine && ! chown 33 /mine 2>/dev/null && id -u")
	if stdout != "0" || code != 0 {
		t.Errorf("uml run: %q, %s, exit code %d", stdout, stderr, code)
	}
	for _, want := range []string{"WRN", "all files of the guest are this user's", "usermod --add-subuids", "disk image"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("the log has no %q: %s", want, stderr)
		}
	}
	u.must("rootfs", "rm", "guest")
	u.checkGone()
}

// TestDisk has a container boot from a disk image that was made here, which the guest changes, unless it is ephemeral. Then
// the same as a block device.
func TestDisk(t *testing.T) {
	t.Parallel()
	needImage(t)
	if hostProgram == "" || hostRootfs == "" {
		t.Skip("E2E_UML and E2E_ROOTFS are not set: make e2e builds what they name and sets them")
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command(hostProgram, "rootfs", "import", hostRootfs, path).CombinedOutput(); err != nil {
		t.Fatalf("uml rootfs import: %v\n%s", err, out)
	}
	losetup := append(asRoot(t), "losetup")
	out, err := exec.Command(losetup[0], append(losetup[1:], "--find", "--show", path)...).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { admin(t, "losetup", "--detach", device) })

	// In /dev: elsewhere a container may open no device.
	file, block := []string{"-v", path + ":/dev/disk"}, []string{"--device", device + ":/dev/disk"}
	for _, test := range []struct {
		disk                     []string
		ephemeral, command, want string
	}{
		{file, "off", "touch /kept && chown 33:42 /kept && df --output=source / | tail -1", "/dev/ubda"},
		{file, "on", "rm /kept && touch /gone && df --output=source / | tail -1", "/dev/ubda"},
		{file, "off", "stat -c '%n %u:%g' /kept /gone /etc/shadow 2>/dev/null || true", "/kept 33:42\n/etc/shadow 0:42"},
		{block, "on", "rm /kept && touch /gone && ls -d /kept /gone 2>/dev/null || true", "/gone"},
		{block, "off", "ls -d /kept /gone 2>/dev/null || true", "/kept"},
	} {
		stdout, stderr, code := run(t, "", append(test.disk, "-e", "DISK=/dev/disk", "-e", "EPHEMERAL="+test.ephemeral,
			"--", "run", "sh", "-c", test.command)...)
		if strings.TrimSpace(stdout) != test.want || code != 0 {
			t.Errorf("%v, EPHEMERAL=%s: %q, exit code %d, want %q\n%s", test.disk, test.ephemeral, stdout, code, test.want, stderr)
		}
	}
}

// TestHostDatabase installs PostgreSQL, whose files have an owner of their own and are written with care. That takes more
// than a minute.
func TestHostDatabase(t *testing.T) {
	if os.Getenv("E2E_DATABASE") == "" {
		t.Skip("E2E_DATABASE is not set: make e2e E2E_DATABASE=1")
	}
	t.Parallel()
	for _, way := range hostWays {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			u := newHostUser(t, way.subIDs)
			u.importRootfs()
			u.up("--mem", "512M")
			u.must("exec", "guest", "sh", "-c", aptInstall+"postgresql")
			const psql = "exec -u postgres -w / guest psql -At -c"
			query := func(sql string) []string { return append(strings.Fields(psql), sql) }
			u.must(query("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n")...)
			u.want("guest 0", "stop", "guest")
			u.want("guest", "up", "--rootfs", "guest", "-d", "--wait", "--ports", "", "--mem", "512M")
			u.want("50005000", query("SELECT sum(n) FROM t")...)
			u.want("guest 0", "stop", "guest")
			u.checkGone()
		})
	}
}
