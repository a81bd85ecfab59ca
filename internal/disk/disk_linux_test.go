package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestSync(t *testing.T) {
	if err := Sync(t.TempDir()); err != nil {
		t.Error(err)
	}
	d, err := os.Open("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Sync() == nil {
		t.Error("here /proc is synced: it does not stand for a file system that cannot do that")
	}
	if err := Sync(d.Name()); err != nil {
		t.Errorf("a file system that cannot sync a directory: %v", err)
	}
	if err := Sync(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}
