package sockpath

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"launcher/internal/errs"
)

func TestListenDialRemove(t *testing.T) {
	run := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", "")
	if len(run) < 60 {
		t.Setenv("XDG_RUNTIME_DIR", run)
	}
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 60), strings.Repeat("e", 60))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	shallow, err := os.MkdirTemp("/tmp", "sp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shallow) })
	for _, dir := range []string{shallow, deep} {
		path := filepath.Join(dir, "head.sock")
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := Dial(ctx, path); !errs.Is(err, errs.NotFound) {
			t.Errorf("dial before listen: %v", err)
		}
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		at, err := Find(path)
		if err != nil || len(at) > Max {
			t.Fatalf("found %q, %v", at, err)
		}
		st, err := os.Stat(at)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("socket mode %v, %v", st, err)
		}
		if at != path && !ours(filepath.Dir(at)) {
			t.Errorf("%s can be entered by others", filepath.Dir(at))
		}
		accepted := make(chan net.Conn, 2)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					close(accepted)
					return
				}
				accepted <- c
			}
		}()
		c, err := Dial(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = (<-accepted).Close()
		if _, err := Listen(path); !errs.Is(err, errs.Exists) {
			t.Errorf("a second listener: %v", err)
		}
		_ = (<-accepted).Close()
		_ = l.Close()
		// What a dead process left is replaced, at the same place.
		l2, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		_ = l2.Close()
		if again, _ := Find(path); again != at {
			t.Errorf("moved from %s to %s", at, again)
		}
		if err := Remove(path); err != nil {
			t.Error(err)
		}
		if err := Remove(path); err != nil {
			t.Errorf("removed twice: %v", err)
		}
		if _, err := os.Lstat(at); !os.IsNotExist(err) {
			t.Errorf("%s is still there", at)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if at != path {
			if _, err := os.Lstat(filepath.Dir(at)); !os.IsNotExist(err) {
				t.Errorf("%s is still there", filepath.Dir(at))
			}
		}
	}
}

func TestSquattedDirectory(t *testing.T) {
	run, err := os.MkdirTemp("/tmp", "sp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	t.Setenv("XDG_RUNTIME_DIR", run)
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	first, err := shortDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(first, 0o777); err != nil {
		t.Fatal(err)
	}
	second, err := shortDir(path)
	if err != nil || second == first || !ours(second) {
		t.Fatalf("got %q after %q was open to others: %v", second, first, err)
	}
}
