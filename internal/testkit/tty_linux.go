package testkit

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Terminal is a command in the background at a terminal of its own.
type Terminal struct {
	*Running
	tty  *os.File
	seen int // of what it shows, that Expect has passed
}

// StartTTY starts a launcher command with a terminal for all that it reads and writes; Out
// is what is seen there.
func (h *Home) StartTTY(args ...string) *Terminal {
	h.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		h.t.Skipf("SKIP: no terminals here: %s", err)
	}
	raw, err := master.SyscallConn()
	if err != nil {
		h.t.Fatal(err)
	}
	var n uint32
	var bad error
	if err := raw.Control(func(fd uintptr) {
		if bad = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); bad == nil {
			n, bad = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN)
		}
	}); err != nil || bad != nil {
		h.t.Fatal(err, bad)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		h.t.Skipf("SKIP: no terminals here: %s", err)
	}
	r := &Running{t: h.t, Cmd: h.Cmd(context.Background(), args...), out: &Buffer{}, err: &Buffer{}, done: make(chan struct{})}
	r.Cmd.Stdin, r.Cmd.Stdout, r.Cmd.Stderr = slave, slave, slave
	r.Cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Credential: r.Cmd.SysProcAttr.Credential}
	if err := r.Cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	_ = slave.Close()
	shown := make(chan struct{})
	go func() { _, _ = io.Copy(r.out, master); close(shown) }() // until the last process has left the terminal
	go func() {
		_ = r.Cmd.Wait()
		select {
		case <-shown:
		case <-time.After(5 * time.Second): // a process that was left behind has it
		}
		close(r.done)
	}()
	h.t.Cleanup(func() { _ = r.Cmd.Process.Kill(); <-r.done; _ = master.Close() })
	return &Terminal{Running: r, tty: master}
}

// Expect waits until one of words is seen, after those of the last Expect, and says which:
// the first that is seen.
func (t *Terminal) Expect(words ...string) int {
	t.t.Helper()
	which := 0
	Eventually(t.t, Bound, func() string {
		out := t.Out()
		at := -1
		for k, w := range words {
			if i := strings.Index(out[t.seen:], w); i >= 0 && (at < 0 || i < at) {
				at, which = i, k
			}
		}
		if at < 0 {
			return fmt.Sprintf("%q is not seen: %q", words, out[t.seen:])
		}
		t.seen += at + len(words[which])
		return ""
	})
	return which
}

// Hangup closes the terminal.
func (t *Terminal) Hangup() { _ = t.tty.Close() }

// Type types a line.
func (t *Terminal) Type(line string) {
	t.t.Helper()
	if _, err := io.WriteString(t.tty, line+"\n"); err != nil {
		t.t.Fatal(err)
	}
}
