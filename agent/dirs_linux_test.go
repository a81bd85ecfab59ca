package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"launcher/wire"
)

// TestDirsInCache: what is used stays, of the others those that were used last.
func TestDirsInCache(t *testing.T) {
	cache := t.TempDir()
	d := &dirs{a: &agent{cfg: wire.NodeConfig{CacheDir: filepath.Dir(cache)}, log: slog.New(slog.DiscardHandler)}}
	path := func(i int) string { return filepath.Join(cache, fmt.Sprint(i)) }
	for i := range maxDirs + 3 {
		if err := os.MkdirAll(filepath.Join(path(i), "in"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	used := hold(path(0))
	for i := range maxDirs + 3 {
		at := time.Now().Add(time.Duration(i-100) * time.Minute)
		if err := os.Chtimes(path(i), at, at); err != nil {
			t.Fatal(err)
		}
	}
	d.tidy(cache)
	for i := range maxDirs + 3 {
		if want := i == 0 || i > 2; isDir(path(i)) != want {
			t.Errorf("directory %d: there is %v, want %v", i, !want, want)
		}
	}
	used.Close()
	d.tidy(cache)
	if isDir(path(0)) || hold(path(0)) != nil {
		t.Error("a directory that nobody uses stays for ever")
	}
}
