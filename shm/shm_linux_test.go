package shm_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"launcher/internal/errs"
	"launcher/shm"
)

// TestMain makes this binary play the second process: it maps the segment it inherited
// and answers the futex ping of TestFutexBetweenProcesses.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "shm-peer" {
		os.Exit(peer())
	}
	os.Exit(m.Run())
}

func words(s *shm.Segment) []uint32 {
	return unsafe.Slice((*uint32)(unsafe.Pointer(&s.Bytes()[0])), len(s.Bytes())/4)
}

func peer() int {
	s, err := shm.Open(os.NewFile(3, "segment"), true)
	if err != nil {
		return 3
	}
	w := words(s)
	for i := uint32(1); i <= 100; i++ {
		for atomic.LoadUint32(&w[0]) != i {
			if !shm.FutexWait(&w[0], i-1, time.Minute) {
				return 4
			}
		}
		atomic.StoreUint32(&w[1], i)
		shm.FutexWake(&w[1], 1)
	}
	return 0
}

func TestFutexBetweenProcesses(t *testing.T) {
	s, err := shm.Create("test", 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "shm-peer")
	cmd.ExtraFiles = []*os.File{s.File()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := words(s)
	for i := uint32(1); i <= 100; i++ {
		atomic.StoreUint32(&w[0], i)
		shm.FutexWake(&w[0], 1)
		for atomic.LoadUint32(&w[1]) != i {
			if !shm.FutexWait(&w[1], i-1, time.Minute) {
				cmd.Process.Kill()
				t.Fatalf("no answer to ping %d within 10 s: %v", i, cmd.Wait())
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestFutexTimeout(t *testing.T) {
	s, err := shm.Create("test", 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := words(s)
	start := time.Now()
	if shm.FutexWait(&w[0], 0, 30*time.Millisecond) {
		t.Error("a wait that nobody ends reports a wake")
	}
	if d := time.Since(start); d < 30*time.Millisecond || d > time.Minute {
		t.Errorf("a wait of 30 ms took %v", d)
	}
	if !shm.FutexWait(&w[0], 1, time.Hour) {
		t.Error("a wait for a word that differs already must return at once")
	}
	if shm.FutexWait(&w[0], 0, 0) {
		t.Error("a wait without time reports a wake")
	}
	if n := shm.FutexWake(&w[0], 1); n != 0 {
		t.Errorf("woke %d waiters, there are none", n)
	}
}

func TestSeals(t *testing.T) {
	s, err := shm.Create("test", 8192)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := unix.Ftruncate(int(s.File().Fd()), 4096); !errors.Is(err, unix.EPERM) {
		t.Errorf("cutting a sealed segment: %v, want EPERM", err)
	}
	s.Prefault()
	if err := shm.Seal(s.File(), unix.F_SEAL_FUTURE_WRITE); err != nil {
		t.Fatal(err)
	}
	s.Bytes()[0] = 7 // the mapping made before stays writable
	dup, err := unix.Dup(int(s.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(dup), "dup")
	if _, err := shm.Open(f, true); err == nil {
		t.Error("mapping read-write after F_SEAL_FUTURE_WRITE worked")
	}
	ro, err := shm.Open(f, false)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if ro.Bytes()[0] != 7 || len(ro.Bytes()) != 8192 {
		t.Errorf("the second mapping sees %d in %d bytes, want 7 in 8192", ro.Bytes()[0], len(ro.Bytes()))
	}
}

func TestOpenRefusesWhatCanShrink(t *testing.T) {
	f, err := shm.CreateFile("loose")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := shm.Open(f, false); !errs.Is(err, errs.Corrupt) {
		t.Errorf("opening an unsealed file: %v, want kind corrupt", err)
	}
	if _, err := shm.Create("none", 0); !errs.Is(err, errs.Invalid) {
		t.Errorf("a segment of no bytes: %v, want kind invalid", err)
	}
}

func TestCreateMoreThanThereIs(t *testing.T) {
	if _, err := shm.Create("huge", 1<<60); !errs.Is(err, errs.Exhausted) {
		t.Errorf("a segment of 2^60 bytes: %v, want kind exhausted", err)
	}
}

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		conns[i] = c.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

func TestPassDescriptors(t *testing.T) {
	a, b := pair(t)
	s, err := shm.Create("passed", 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	copy(s.Bytes(), "through")
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pr.Close()
	payload := bytes.Repeat([]byte("x"), 300_000) // more than a socket takes at once
	errc := make(chan error, 1)
	go func() { errc <- shm.SendFDs(a, payload, s.File(), pw) }()
	buf := make([]byte, 8)
	n, files, err := shm.RecvFDs(b, buf)
	if err != nil || n != 8 || len(files) != 2 {
		t.Fatalf("received %d bytes, %d descriptors, %v; want 8, 2, nil", n, len(files), err)
	}
	rest := make([]byte, len(payload)-8)
	if _, err := io.ReadFull(b, rest); err != nil {
		t.Fatal(err)
	}
	if err := <-errc; err != nil {
		t.Fatal(err)
	}
	pw.Close()
	got, err := shm.Open(files[0], false)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if string(got.Bytes()[:7]) != "through" {
		t.Errorf("the passed segment holds %q", got.Bytes()[:7])
	}
	if _, err := files[1].WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	files[1].Close()
	all, err := io.ReadAll(pr)
	if string(all) != "hello" || err != nil {
		t.Errorf("through the passed pipe came %q, %v", all, err)
	}
	if fl, err := unix.FcntlInt(got.File().Fd(), unix.F_GETFD, 0); err != nil || fl&unix.FD_CLOEXEC == 0 {
		t.Errorf("a passed descriptor is not close-on-exec (%v)", err)
	}
	if err := shm.SendFDs(a, nil, pr); !errs.Is(err, errs.Invalid) {
		t.Errorf("descriptors without data: %v, want kind invalid", err)
	}
	a.Close()
	if _, _, err := shm.RecvFDs(b, buf); err != io.EOF {
		t.Errorf("after the end: %v, want EOF", err)
	}
}

func TestPeerUID(t *testing.T) {
	a, _ := pair(t)
	uid, pid, err := shm.PeerUID(a)
	if err != nil || uid != os.Getuid() || pid != os.Getpid() {
		t.Errorf("peer is %d/%d, %v; want %d/%d", uid, pid, err, os.Getuid(), os.Getpid())
	}
}
