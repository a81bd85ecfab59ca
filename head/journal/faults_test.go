package journal

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"launcher/internal/errs"
)

// faulty is a segment file with faults.
type faulty struct {
	file
	write func(p []byte) (int, error) // how many bytes are written before the error
	sync  func() error
}

func (f *faulty) WriteAt(p []byte, off int64) (int, error) {
	if f.write != nil {
		if n, err := f.write(p); err != nil {
			_, _ = f.file.WriteAt(p[:n], off)
			return n, err
		}
	}
	return f.file.WriteAt(p, off)
}

func (f *faulty) Sync() error {
	if f.sync != nil {
		if err := f.sync(); err != nil {
			return err
		}
	}
	return f.file.Sync()
}

// TestFaults: writes and syncs fail at random; what was appended becomes safe once, in
// order, and meanwhile Stalled tells.
func TestFaults(t *testing.T) {
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 4))
	var mu sync.Mutex
	failing := true
	fault := func() error {
		mu.Lock()
		defer mu.Unlock()
		if failing && rnd.IntN(3) == 0 {
			return syscall.ENOSPC
		}
		return nil
	}
	var told []error
	j, _, err := open(dir, Options{SegmentSize: 500, RetryEvery: time.Millisecond, OnStall: func(err error) { told = append(told, err) }},
		func(path string) (file, error) {
			f, err := createFile(path)
			return &faulty{file: f, sync: fault, write: func(p []byte) (int, error) { return len(p) / 2, fault() }}, err
		})
	for err != nil && errs.Is(err, errs.Exhausted) {
		j, _, err = Open(dir, Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	fill(t, j, 200)
	mu.Lock()
	failing = false
	mu.Unlock()
	mustClose(t, j)
	rec, err := Load(dir)
	if err == nil {
		err = check(rec, 200)
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range told {
		if (err != nil) != (i%2 == 0) || (err != nil && !errs.Is(err, errs.Exhausted)) {
			t.Fatalf("told %v", told)
		}
	}
}

func TestFullThenRoom(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	var full error
	told := make(chan error, 10)
	j, _, err := open(dir, Options{RetryEvery: time.Millisecond, OnStall: func(err error) { told <- err }}, func(path string) (file, error) {
		f, err := createFile(path)
		return &faulty{file: f, write: func(p []byte) (int, error) { mu.Lock(); defer mu.Unlock(); return 7, full }}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, j, 3)
	mu.Lock()
	full = syscall.ENOSPC
	mu.Unlock()
	seq, err := j.Append(val(4))
	if err != nil {
		t.Fatal(err)
	}
	if err := <-told; !errs.Is(err, errs.Exhausted) || len(errs.HintsOf(err)) == 0 {
		t.Fatalf("told %v", err)
	}
	if err := j.Stalled(); !errs.Is(err, errs.Exhausted) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := j.Wait(ctx, seq); !errs.Is(err, errs.Exhausted) {
		t.Fatalf("waiting on a full disk: %v", err)
	}
	if rec, err := Load(dir); err != nil || check(rec, 3) != nil {
		t.Fatalf("something half-written counts: %v", err)
	}
	mu.Lock()
	full = nil
	mu.Unlock()
	if err := j.Wait(bounded(t), seq); err != nil {
		t.Fatal(err)
	}
	if err := <-told; err != nil || j.Stalled() != nil {
		t.Fatalf("told %v", err)
	}
	mustClose(t, j)
	if rec, err := Load(dir); err != nil || check(rec, 4) != nil {
		t.Fatal(err)
	}
}

// TestHungDisk: a disk that does not answer is told of, though no write has failed.
func TestHungDisk(t *testing.T) {
	hang, in := make(chan struct{}), make(chan struct{}, 1)
	j, _, err := open(t.TempDir(), Options{SlowAfter: time.Nanosecond}, func(path string) (file, error) {
		f, err := createFile(path)
		return &faulty{file: f, write: func(p []byte) (int, error) {
			if len(p) != segHeader {
				in <- struct{}{}
				<-hang
			}
			return len(p), nil
		}}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Stalled(); err != nil {
		t.Errorf("idle: %v", err)
	}
	seq, err := j.Append(val(1))
	if err != nil {
		t.Fatal(err)
	}
	<-in
	if err := j.Stalled(); !errs.Is(err, errs.Unavailable) || len(errs.HintsOf(err)) == 0 {
		t.Errorf("a write that hangs: %v", err)
	}
	close(hang)
	if err := j.Wait(bounded(t), seq); err != nil {
		t.Fatal(err)
	}
	if err := j.Stalled(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	mustClose(t, j)
}
