package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"launcher/internal/disk"
	"launcher/internal/errs"
)

// A writer's claim is the file epoch.N: who creates it, exclusively, has number N, and
// nobody else ever gets it. The claim counts when no higher one is in the directory after
// it was made. The new writer then strikes out all lower claims (it replaces each with
// one that names the new writer) and only then reads what they wrote. A writer is
// replaced once its claim is not what it put there.
//
// So nothing rests on a file that two writers change: creation is decided by the file
// system, the highest number never goes down, and a claim once struck out stays so.
// Opening a file anew, as a writer does to look at its own claim, is what makes NFS ask
// the server; having created a file is what makes it list the directory anew.
const claimPrefix = "epoch."

// keepClaims is how many claims stay. They must outnumber the takeovers that can happen
// while one claimant is between looking which number is free and creating it: a number
// whose file is gone could be had again.
const keepClaims = 16

// claims gives the numbers that are taken in dir, and the highest of them or of any
// segment, in case the claims were lost.
func claims(dir string) (taken []uint64, highest uint64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, 0, classify(err, "cannot read the journal")
	}
	for _, e := range entries {
		if n, ok := parseSegment(e.Name()); ok {
			highest = max(highest, n.epoch)
		} else if n, ok := parseClaim(e.Name()); ok {
			taken = append(taken, n)
			highest = max(highest, n)
		}
	}
	return taken, highest, nil
}

func claimName(n uint64) string { return fmt.Sprint(claimPrefix, n) }

func parseClaim(name string) (uint64, bool) {
	s, ok := strings.CutPrefix(name, claimPrefix)
	n, err := strconv.ParseUint(s, 10, 64)
	return n, ok && err == nil && claimName(n) == name
}

// claim makes the caller the writer of dir. It gives the writer's number and what is in
// its claim for as long as it is the writer. Of those who claim at the same time, all
// that succeed have different numbers, and all but the highest are replaced.
func claim(dir string) (n uint64, text string, err error) {
	for range 1000 {
		_, highest, err := claims(dir)
		if err != nil {
			return 0, "", err
		}
		n, text := highest+1, fmt.Sprintf("%d %s\n", highest+1, rand.Text())
		err = createSafe(filepath.Join(dir, claimName(n)), text)
		if errors.Is(err, fs.ErrExist) {
			continue // somebody was faster
		}
		if err != nil {
			return 0, "", classify(err, "cannot claim the journal")
		}
		taken, highest, err := claims(dir)
		if err != nil {
			return 0, "", err
		}
		if highest > n {
			continue // somebody has a higher number and may not have seen ours
		}
		err = strike(dir, n, taken)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a writer with a higher number tidied up
		}
		if err != nil {
			return 0, "", classify(err, "cannot claim the journal")
		}
		return n, text, syncDir(dir)
	}
	return 0, "", errs.New(errs.Unavailable, "%s: too many writers claim the journal at once", dir)
}

// strike puts writer n in the place of those of taken that are lower.
func strike(dir string, n uint64, taken []uint64) error {
	for _, k := range taken {
		path := filepath.Join(dir, claimName(k))
		if k >= n || struckBy(path) > 0 {
			continue
		}
		tmp := fmt.Sprintf("%s.%d.tmp", path, n)
		if err := createSafe(tmp, fmt.Sprintf("%s%d\n", struckPrefix, n)); err != nil {
			return err
		}
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
	}
	for _, k := range taken {
		if k+keepClaims < n {
			_ = os.Remove(filepath.Join(dir, claimName(k))) // struck out; the next writer tries again
		}
	}
	return nil
}

const struckPrefix = "replaced by "

// struckBy is the writer that struck out the claim at path, 0 if that cannot be read there.
func struckBy(path string) uint64 {
	b, err := os.ReadFile(path)
	s, ok := strings.CutPrefix(string(b), struckPrefix)
	if err != nil || !ok {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
	return n
}

// createSafe makes the file at path, which must not be there, with text in it.
func createSafe(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	return err
}

// Check says (errs.Fenced) when another writer has taken the journal over. A writer that
// has nothing to write would not notice.
func (j *Journal) Check() error { return j.fenced() }

// fenced says whether another writer has taken dir over.
func (j *Journal) fenced() error {
	path := filepath.Join(j.dir, claimName(j.epoch))
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.Fenced, "the journal in %s is no longer that of head %d: its claim is gone", j.dir, j.epoch)
	case err != nil:
		return classify(err, "cannot read the claim on the journal")
	case string(b) == j.claim:
		return nil
	}
	if by := struckBy(path); by > 0 {
		return errs.New(errs.Fenced, "the journal in %s has a newer writer: head %d has replaced head %d", j.dir, by, j.epoch)
	}
	return errs.New(errs.Fenced, "the journal in %s is no longer that of head %d: its claim was changed", j.dir, j.epoch)
}

// tmpEpoch is the writer that made the temporary file with that name; 0 = unknown.
func tmpEpoch(name string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimPrefix(filepath.Ext(strings.TrimSuffix(name, ".tmp")), "."), 10, 64)
	return n
}

func syncDir(dir string) error {
	if err := disk.Sync(dir); err != nil {
		return classify(err, "cannot sync the directory %s", dir)
	}
	return nil
}
