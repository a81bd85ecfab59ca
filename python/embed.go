// Package python carries the Python SDK inside the binary, so that every node gives its
// workers the SDK of the agent's own version without installing anything.
package python

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"launcher/internal/errs"
)

//go:embed launcher/*.py launcher/*/*.py launcher/*/*/*.py launcher/py.typed launcher/from-ray.md as-ray/*/*.py as-ray/*/METADATA wheels
var files embed.FS

// Files is the SDK: the folder launcher and what is in it.
func Files() fs.FS { return files }

// Hash names the SDK's contents.
var Hash = sync.OnceValue(func() string {
	h := sha256.New()
	// The walk is in the order of names, and of an embedded tree it cannot fail.
	_ = fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			b, _ := fs.ReadFile(files, path)
			fmt.Fprintf(h, "%s %d\n", path, len(b))
			h.Write(b)
		}
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:16]
})

// Extract puts the SDK under dir, once for each version of it, and gives the directory
// for PYTHONPATH. Several processes may do so at the same time; what is there already is
// checked, and put right when it is not what it should be.
func Extract(dir string) (string, error) {
	at := filepath.Join(dir, "python-"+Hash())
	if whole(at) {
		return at, nil
	}
	fail := func(err error) (string, error) {
		kind := errs.Exhausted
		if errors.Is(err, fs.ErrPermission) {
			kind = errs.Permission
		}
		return "", errs.Wrap(kind, err, "cannot put the Python SDK under %s", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	tmp, err := os.MkdirTemp(dir, ".python-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(tmp)
	if err := os.CopyFS(tmp, files); err != nil {
		return fail(err)
	}
	for try := 0; ; try++ {
		err := os.Rename(tmp, at)
		if err == nil || whole(at) { // or another process was first
			return at, nil
		}
		if try == 3 {
			return fail(err)
		}
		// Something is in the way that is not ours as it should be: a file was deleted
		// from it, or changed.
		old := fmt.Sprintf("%s.old%d", tmp, try)
		if os.Rename(at, old) == nil {
			_ = os.RemoveAll(old)
		}
	}
}

// whole reports whether a directory has every file of the SDK as it should be.
func whole(at string) bool {
	err := fs.WalkDir(files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		want, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(at, path))
		if err == nil && !bytes.Equal(got, want) {
			err = fs.ErrInvalid
		}
		return err
	})
	return err == nil
}
