package logx

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	var b bytes.Buffer
	log := New(&b, slog.LevelInfo)
	log.Debug("not shown")
	log.Info("joined", "node", "local-0")
	if got := b.String(); !strings.Contains(got, "msg=joined node=local-0\n") || strings.Contains(got, "not shown") || strings.Contains(got, "+00:00") {
		t.Errorf("got %q", got)
	}
}

func TestLevel(t *testing.T) {
	for name, want := range map[string]slog.Level{"": slog.LevelInfo, "DEBUG": slog.LevelDebug, "warn": slog.LevelWarn, "error": slog.LevelError, "x": slog.LevelInfo} {
		if got := Level(name); got != want {
			t.Errorf("Level(%q) = %v, want %v", name, got, want)
		}
	}
}

func TestFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	f, err := openFile(path, 100)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		fmt.Fprintf(f, "line %02d\n", i) // 8 bytes
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	now, _ := os.ReadFile(path)
	old, _ := os.ReadFile(path + ".1")
	if len(now) == 0 || len(now) > 100 || len(old) == 0 || len(old) > 100 {
		t.Fatalf("sizes %d and %d, want 1 to 100 each", len(now), len(old))
	}
	if !strings.HasSuffix(string(now), "line 49\n") {
		t.Errorf("the newest line is not last: %q", now)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if n, err := f.Write([]byte("late")); n != 4 || err != nil {
		t.Errorf("a write after Close gives %d, %v", n, err)
	}
}

func TestOpenAppendsAndFailsClearly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	for range 2 {
		log, c, err := Open(path, slog.LevelInfo)
		if err != nil {
			t.Fatal(err)
		}
		log.Info("hello")
		_ = c.Close()
	}
	if b, _ := os.ReadFile(path); strings.Count(string(b), "msg=hello") != 2 {
		t.Errorf("got %q", b)
	}
	if _, _, err := Open(filepath.Join(path, "x"), slog.LevelInfo); err == nil || !strings.Contains(err.Error(), "cannot open the log file") {
		t.Errorf("got %v", err)
	}
}

func TestOnce(t *testing.T) {
	var o Once
	if !o.First("a") || o.First("a") || !o.First("b") {
		t.Error("First is wrong")
	}
	for i := range 2000 {
		o.First(fmt.Sprint(i))
	}
	if len(o.seen) > 1024 {
		t.Errorf("%d keys kept", len(o.seen))
	}
}
