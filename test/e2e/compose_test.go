package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// composeCommand is docker-compose 1.29 where there is one, else the plugin.
func composeCommand(t *testing.T) []string {
	t.Helper()
	if path, err := exec.LookPath("docker-compose"); err == nil {
		return []string{path}
	}
	if err := exec.Command("docker", "compose", "version").Run(); err != nil {
		t.Fatalf("neither docker-compose nor docker compose: %v", err)
	}
	return []string{"docker", "compose"}
}

// TestCompose brings the repository's docker-compose.yml up, on a port of its own: its client finds the guest once that
// is healthy, and a file stays in the volume.
func TestCompose(t *testing.T) {
	t.Parallel()
	needImage(t)
	file, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	for old, replacement := range map[string]string{
		"127.0.0.1:2222:22":            "127.0.0.1::22",
		"image: docker-usermode-linux": "image: " + image,
	} {
		if !bytes.Contains(file, []byte(old)) {
			t.Fatalf("no %q in docker-compose.yml", old)
		}
		file = bytes.ReplaceAll(file, []byte(old), []byte(replacement))
	}
	path := filepath.Join(t.TempDir(), "docker-compose.yml")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	command := append(composeCommand(t), "-p", name(t, "compose"), "-f", path)
	compose := func(args ...string) string {
		t.Helper()
		var stderr bytes.Buffer
		cmd := exec.Command(command[0], append(command[1:], args...)...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("compose %s: %v\n%s", strings.Join(args, " "), err, &stderr)
		}
		return strings.TrimSpace(string(out))
	}
	defer compose("down", "-v")
	compose("up", "-d", "--no-build")
	c := &container{t: t, id: compose("ps", "-q", "guest")}
	remote(t, c.ssh(), "echo kept > /srv/file && sync")
	client := &container{t: t, id: compose("ps", "-a", "-q", "client")}
	if code := client.wait(); code != "0" || !strings.HasPrefix(client.logs(), "SSH-2.0-") {
		t.Errorf("the client ended with %s and says %q, want the SSH server's greeting", code, client.logs())
	}
	compose("rm", "-s", "-f")
	compose("up", "-d", "--no-build", "guest")
	c = &container{t: t, id: compose("ps", "-q", "guest")}
	if got := remote(t, c.ssh(), "cat /srv/file"); got != "kept" {
		t.Errorf("/srv/file in a new container = %q, want kept", got)
	}
}
