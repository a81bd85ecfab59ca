package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"launcher/internal/errs"
)

const epochFile = "epoch"

// readEpoch gives the epoch of the present writer of dir, 0 when there was none. Opening
// a file anew is what makes NFS ask the server for its present content.
func readEpoch(dir string) (uint64, error) {
	path := filepath.Join(dir, epochFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, classify(err, "cannot read the journal's epoch")
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || n == 0 {
		return 0, errs.New(errs.Corrupt, "%s: %q is not the number of a writer", path, b)
	}
	return n, nil
}

// claim makes the caller the writer of dir. Two that claim at the same time get
// different numbers by exclusive creation, and one of them finds itself replaced.
func claim(dir string) (uint64, error) {
	for range 100 {
		old, err := readEpoch(dir)
		if err != nil {
			return 0, err
		}
		n, mine, err := claimNumber(dir, max(old, newestSegment(dir))+1)
		if err != nil {
			return 0, err
		}
		if now, err := readEpoch(dir); err != nil || now >= n {
			_ = os.Remove(mine)
			if err != nil {
				return 0, err
			}
			continue
		}
		err = os.Rename(mine, filepath.Join(dir, epochFile))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a writer with a higher number swept our claim away
		}
		if err != nil {
			return 0, classify(err, "cannot claim the journal")
		}
		if err := syncDir(dir); err != nil {
			return 0, err
		}
		removeClaims(dir, n)
		return n, nil
	}
	return 0, errs.New(errs.Unavailable, "%s: too many writers claim the journal at once", dir)
}

// newestSegment is the highest epoch of a segment in dir, in case the epoch file was lost.
func newestSegment(dir string) (epoch uint64) {
	names, _ := filepath.Glob(filepath.Join(dir, "seg-*"))
	for _, name := range names {
		if n, ok := parseSegment(filepath.Base(name)); ok {
			epoch = max(epoch, n.epoch)
		}
	}
	return epoch
}

// claimNumber creates a claim file with the first number from n on that nobody has.
func claimNumber(dir string, n uint64) (uint64, string, error) {
	for ; ; n++ {
		path := filepath.Join(dir, fmt.Sprintf("%s.%d", epochFile, n))
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return 0, "", classify(err, "cannot claim the journal")
		}
		_, err = fmt.Fprintf(f, "%d\n", n)
		if err == nil {
			err = f.Sync()
		}
		if err2 := f.Close(); err == nil {
			err = err2
		}
		if err != nil {
			_ = os.Remove(path)
			return 0, "", classify(err, "cannot claim the journal")
		}
		return n, path, nil
	}
}

// removeClaims removes what claimants before writer n left when they died.
func removeClaims(dir string, n uint64) {
	names, _ := filepath.Glob(filepath.Join(dir, epochFile+".*"))
	for _, name := range names {
		if k, err := strconv.ParseUint(strings.TrimPrefix(filepath.Ext(name), "."), 10, 64); err == nil && k < n {
			_ = os.Remove(name)
		}
	}
}

// Check says (errs.Fenced) when another writer has taken the journal over. A writer that
// has nothing to write would not notice.
func (j *Journal) Check() error { return j.fenced() }

// fenced says whether another writer has taken dir over.
func (j *Journal) fenced() error {
	now, err := readEpoch(j.dir)
	if err != nil {
		return err
	}
	if now != j.epoch {
		return errs.New(errs.Fenced, "the journal in %s has a newer writer: head %d has replaced head %d", j.dir, now, j.epoch)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err == nil {
		err = d.Sync()
		_ = d.Close()
	}
	if err != nil {
		return classify(err, "cannot sync the directory %s", dir)
	}
	return nil
}
