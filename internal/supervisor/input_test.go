package supervisor

import (
	"io"
	"os"
	"testing"
	"time"
)

// TestInputAfterReboot types while a guest runs, while none does, and while the next one runs: nothing gets lost.
func TestInputAfterReboot(t *testing.T) {
	stdin, keyboard := io.Pipe()
	defer keyboard.Close()
	in := newInput(stdin)
	boot := func() (screen, console *os.File) {
		t.Helper()
		screen, console, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			screen.Close()
			console.Close()
		})
		_ = screen.SetReadDeadline(time.Now().Add(hang))
		in.connect(console)
		return screen, console
	}
	write := func(text string) {
		t.Helper()
		if _, err := keyboard.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(screen *os.File, want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(screen, got); err != nil || string(got) != want {
			t.Errorf("the guest reads %q, %v, want %q", got, err, want)
		}
	}
	screen, console := boot()
	write("reboot\n")
	expect(screen, "reboot\n")
	in.disconnect()
	console.Close()
	write("root\n") // for a Read that began when the first guest ran
	screen, console = boot()
	expect(screen, "root\n")
	write("ls\n")
	expect(screen, "ls\n")

	console.Close() // the guest ends before anybody says so
	write("again\n")
	screen, _ = boot()
	expect(screen, "again\n")
}
