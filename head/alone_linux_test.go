package head

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
)

// TestHeadThatIsStopped: one that takes no more calls is another head all the same.
func TestHeadThatIsStopped(t *testing.T) {
	h := &head{dir: t.TempDir(), ctx: t.Context()}
	if err := h.alone(); err != nil {
		t.Errorf("without another: %v", err)
	}
	at := &unix.SockaddrUnix{Name: filepath.Join(h.dir, socketFile)}
	socket := func() int {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	other := socket()
	if err := unix.Bind(other, at); err != nil {
		t.Fatal(err)
	}
	if err := h.alone(); err != nil {
		t.Errorf("with what a dead one left: %v", err)
	}
	if err := unix.Listen(other, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(socket(), at); err != nil {
		t.Fatal(err)
	}
	if err := h.alone(); !errs.Is(err, errs.Exists) {
		t.Errorf("with one that has been called and is stopped: %v", err)
	}
}
