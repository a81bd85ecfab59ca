package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"launcher/agent/supervisor/supervisortest"
	"launcher/wire"
)

// TestRootFullSpool: the head hears at once that output cannot be written, and that it
// goes on; none of it is lost.
func TestRootFullSpool(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	spool := filepath.Join(cfg.Dir, "spool")
	must(t, os.MkdirAll(spool, 0o700))
	if err := unix.Mount("tmpfs", spool, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skipf("no small file system can be made here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(spool, unix.MNT_DETACH) })
	ballast := filepath.Join(spool, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 900<<10), 0o600))
	inProcess(t, h, cfg, supervisortest.Start(t))
	n := h.up("p-0", 1)

	h.give("p-0", jobOf(1, wire.KindRun, "sh", "-c", "head -c 400000 /dev/zero | tr '\\0' x"), 1)
	held := func() []wire.HeldOutput { return n.beats[len(n.beats)-1].Held }
	h.wait("the news that output waits", func() bool { return len(held()) == 1 })
	h.mu.Lock()
	x := held()[0]
	h.mu.Unlock()
	if x.Job != 1 || !strings.Contains(x.Why, "no space left") || !strings.Contains(x.Why, spool) {
		t.Errorf("told: %+v", x)
	}
	must(t, os.Remove(ballast))
	h.wait("the news that it goes on", func() bool { return len(held()) == 0 })
	if out := h.output("p-0", procOf(1, 0), 1); len(out) != 400000 {
		t.Errorf("%d bytes of output", len(out))
	}
}
