package journal

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
)

// TestRealFullDisk fills a small file system of its own.
func TestRootFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		t.Skipf("SKIP: a file system of 256 KiB cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	told := make(chan error, 10)
	j, _ := mustOpen(t, filepath.Join(dir, "journal"), Options{RetryEvery: time.Millisecond, OnStall: func(err error) { told <- err }})
	fill(t, j, 20)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("the file system is larger than asked for")
	}
	big := bytes.Repeat([]byte("x"), 64<<10)
	seq, err := j.Append(big)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-told; !errs.Is(err, errs.Exhausted) {
		t.Fatalf("told %v", err)
	}
	if rec, err := Load(filepath.Join(dir, "journal")); err != nil || check(rec, 20) != nil {
		t.Fatalf("half-written: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := j.Wait(bounded(t), seq); err != nil {
		t.Fatal(err)
	}
	mustClose(t, j)
	rec, err := Load(filepath.Join(dir, "journal"))
	if err != nil || rec.Last() != 21 || !bytes.Equal(rec.Records[20], big) {
		t.Fatalf("after room was made: %v", err)
	}
}
