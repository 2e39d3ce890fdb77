package balloon

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"docker-usermode-linux/internal/vhostuser"
	"docker-usermode-linux/internal/vhostuser/vhostusertest"
)

// hang is far longer than anything takes: it turns a hang into a failure.
const hang = 60 * time.Second

const page = 4096

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a balloon with a guest's kernel, and returns where that has memory besides its rings.
func start(t *testing.T) (b *Balloon, guest *vhostusertest.FrontEnd, at int, done <-chan error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "balloon")
	b, err := New(path, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	ended := make(chan error, 1)
	go func() { ended <- b.Run() }()
	at = numQueues * vhostusertest.RingBytes
	guest, err = vhostusertest.Connect(path, featureReporting|vhostuser.FeatureEventIdx, numQueues, at+64*page)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(guest.Free)
	t.Cleanup(guest.HangUp)
	if guest.Features&featureReporting == 0 {
		t.Fatal("no free page reporting is offered")
	}
	if err := guest.Start(); err != nil {
		t.Fatal(err)
	}
	return b, guest, at, ended
}

// report offers parts of the guest's memory, by offset and length, and waits until it has them back.
func report(t *testing.T, guest *vhostusertest.FrontEnd, queue int, parts ...[2]int) {
	t.Helper()
	ring := guest.Rings[queue]
	for i, p := range parts {
		flags := uint16(vhostusertest.Write)
		if i < len(parts)-1 {
			flags |= vhostusertest.Next
		}
		ring.SetDesc(uint16(i), vhostusertest.Base+uint64(p[0]), uint32(p[1]), flags, uint16(i+1))
	}
	ring.Offer(0)
	ring.Publish()
	for deadline := time.Now().Add(hang); ; time.Sleep(time.Millisecond) {
		if head, _, ok := ring.Used(); ok {
			if head != 0 {
				t.Fatalf("chain %d came back, want 0", head)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the report did not come back")
		}
	}
}

func TestReport(t *testing.T) {
	b, guest, at, _ := start(t)
	for i := range guest.Mem[at:] {
		guest.Mem[at+i] = 0xaa
	}
	report(t, guest, queueReporting, [2]int{at + page, 2 * page}, [2]int{at + 8*page, page})
	for i := range 64 {
		want := byte(0xaa)
		if i == 1 || i == 2 || i == 8 {
			want = 0
		}
		if got := guest.Mem[at+i*page : at+(i+1)*page]; !bytes.Equal(got, bytes.Repeat([]byte{want}, page)) {
			t.Errorf("page %d holds %#x, want %#x", i, got[0], want)
		}
	}
	if got := b.Returned(); got != 3*page {
		t.Errorf("Returned() = %d, want %d", got, 3*page)
	}
	// Again, for the notifications.
	guest.Mem[at+page] = 1
	report(t, guest, queueReporting, [2]int{at + page, page})
	if guest.Mem[at+page] != 0 {
		t.Error("the second report was not acted upon")
	}
}

// TestReportNotWholePages leaves alone what is no page, and goes on.
func TestReportNotWholePages(t *testing.T) {
	b, guest, at, _ := start(t)
	guest.Mem[at+100] = 1
	report(t, guest, queueReporting, [2]int{at + 100, 50})
	if guest.Mem[at+100] != 1 || b.Returned() != 0 {
		t.Error("half a page was given back")
	}
	report(t, guest, queueReporting, [2]int{at, page})
	if guest.Mem[at+100] != 0 {
		t.Error("the next report was not acted upon")
	}
}

// TestInflate has a driver that inflates the balloon unasked: nothing happens to its memory.
func TestInflate(t *testing.T) {
	_, guest, at, _ := start(t)
	guest.Mem[at] = 1
	report(t, guest, queueInflate, [2]int{at, page})
	if guest.Mem[at] != 1 {
		t.Error("a page was given back without a report")
	}
}

func TestEnds(t *testing.T) {
	_, guest, _, done := start(t)
	guest.Rings[queueReporting].SetDesc(0, 1, 1, vhostusertest.Write, 0) // outside of the memory
	guest.Rings[queueReporting].Offer(0)
	guest.Rings[queueReporting].Publish()
	select {
	case err := <-done:
		if !errors.Is(err, vhostuser.ErrRing) {
			t.Errorf("Run() = %v, want ErrRing", err)
		}
	case <-time.After(hang):
		t.Fatal("Run() goes on with a broken driver")
	}

	b, guest, _, done := start(t)
	guest.HangUp()
	if err := <-done; err != nil {
		t.Errorf("Run() = %v when the guest is gone, want nil", err)
	}
	b.Close()
}
