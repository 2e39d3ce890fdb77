package vporttest

import (
	"io"
	"io/fs"
	"os"
	"syscall"
)

const path = "/dev/vport0p0"

// Open is what open(2) of /dev/vport0p0 is for a program: EBUSY while another one has it open. What it returns can be
// used concurrently; its Close ends a Read and a Write, as that of an os.File does.
func (d *Driver) Open() (io.ReadWriteCloser, error) {
	f := &file{driver: d}
	d.mu.Lock()
	switch {
	case d.gone.Load():
		d.mu.Unlock()
		return nil, fault("open", syscall.ENXIO)
	case d.program != nil:
		d.mu.Unlock()
		return nil, fault("open", syscall.EBUSY)
	}
	d.program = f
	d.reclaim()
	d.mu.Unlock()
	d.send(0, portOpen, 1)
	return f, nil
}

func fault(op string, err error) error { return &fs.PathError{Op: op, Path: path, Err: err} }

// file is the port, opened.
type file struct {
	driver *Driver
	closed bool // guarded by the driver's mu
}

// check says why the port cannot be used.
//
// Preconditions: the driver's mu is held.
func (f *file) check(op string) error {
	switch {
	case f.closed:
		return fault(op, os.ErrClosed)
	case f.driver.gone.Load():
		return fault(op, syscall.ENODEV)
	}
	return nil
}

// Read is port_fops_read.
func (f *file) Read(b []byte) (int, error) {
	d := f.driver
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if err := f.check("read"); err != nil {
			return 0, err
		}
		if len(b) == 0 {
			return 0, nil
		}
		if d.takeInput() {
			n := copy(b, d.inBuffer)
			if d.inBuffer = d.inBuffer[n:]; len(d.inBuffer) == 0 {
				d.giveInput()
			}
			if n == 0 {
				return 0, io.EOF // of an empty buffer
			}
			return n, nil
		}
		if !d.hostOpen {
			return 0, io.EOF
		}
		d.changed.Wait()
	}
}

// Write is write(2) until all is written, as os.File does it.
func (f *file) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var k int
		k, err = f.write(b[n:min(n+writeBytes, len(b))])
		n += k
	}
	return n, err
}

// write is port_fops_write.
func (f *file) write(b []byte) (int, error) {
	d := f.driver
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if err := f.check("write"); err != nil {
			return 0, err
		}
		if d.reclaim(); d.hostOpen && len(d.free) > 0 {
			break
		}
		d.changed.Wait()
	}
	id := d.free[len(d.free)-1]
	d.free = d.free[:len(d.free)-1]
	at := outBuffers + int(id)*writeBytes
	copy(d.device.Mem[at:at+writeBytes], b)
	d.out.add(id, at, len(b), 0)
	d.out.Publish()
	return len(b), nil
}

// Close is port_fops_release.
func (f *file) Close() error {
	d := f.driver
	d.mu.Lock()
	if f.closed {
		d.mu.Unlock()
		return fault("close", os.ErrClosed)
	}
	f.closed = true
	d.changed.Broadcast()
	d.mu.Unlock()
	d.send(0, portOpen, 0)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.program = nil
	if !d.gone.Load() {
		d.discard()
		d.reclaim()
	}
	return nil
}
