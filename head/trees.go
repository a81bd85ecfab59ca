package head

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"launcher/head/core"
	"launcher/head/record"
	"launcher/internal/disk"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/bundle"
	"launcher/wire/session"
)

const (
	// maxTrees is how much of working directories is kept, those that were wanted last.
	maxTrees = 2 << 30
	// treePause is how long the other side may take between two pieces.
	treePause = 30 * time.Second
)

var (
	rankRE = regexp.MustCompile(`^checkpoints/([0-9]+/)?step-[0-9]+\.a[0-9]+/rank-[0-9]+$`)
)

// pieces reads and writes a stream with a bound on each piece.
type pieces struct{ *session.Stream }

func (p pieces) Read(b []byte) (int, error) {
	_ = p.SetReadDeadline(time.Now().Add(treePause))
	return p.Stream.Read(b)
}

func (p pieces) Write(b []byte) (int, error) {
	_ = p.SetWriteDeadline(time.Now().Add(treePause))
	return p.Stream.Write(b)
}

// treePath is where a tree lies; as is what its path must look like.
func (h *head) treePath(t wire.Tree, as *regexp.Regexp) (string, error) {
	if t.Sum != "" {
		if !wire.IsTreeSum(t.Sum) {
			return "", errs.New(errs.Invalid, "%q is no sum of a directory", t.Sum)
		}
		return filepath.Join(h.state, "dirs", t.Sum), nil
	}
	if !as.MatchString(t.Path) {
		return "", errs.New(errs.Invalid, "%q is no checkpoint", t.Path)
	}
	if _, ok, err := h.job(t.Job); err != nil || !ok {
		return "", errs.Wrap(errs.NotFound, err, "there is no job %d", t.Job)
	}
	return filepath.Join(h.state, "jobs", strconv.FormatUint(uint64(t.Job), 10), t.Path), nil
}

// lostCheckpoints gives the committed checkpoints in the record that are not on this machine.
func (h *head) lostCheckpoints(d *core.Durable) (out []core.RecCheckpoint) {
	for _, x := range d.Checkpoints() {
		_, rel, ok := strings.Cut(x.Path, fmt.Sprintf("/jobs/%d/checkpoints/", x.Job))
		if !ok || !filepath.IsLocal(rel) {
			continue // elsewhere: the spec said where
		}
		_, err := os.Stat(filepath.Join(h.state, "jobs", strconv.FormatUint(uint64(x.Job), 10), "checkpoints", rel))
		if errors.Is(err, fs.ErrNotExist) {
			h.log.Warn("a checkpoint was lost with the head's machine", "job", x.Job, "task", x.Index, "step", x.Step)
			out = append(out, x)
		}
	}
	return out
}

// putTree takes a tree.
func (h *head) putTree(st *session.Stream, m wire.TreePut) error {
	t, as := m.Tree, rankRE
	output := outputRE.MatchString(t.Path)
	if output {
		as = outputRE
	}
	to, err := h.treePath(t, as)
	if err != nil {
		return err
	}
	is := wire.TreeWanted{Wanted: true}
	switch {
	case t.Sum != "":
		is.Wanted = os.Chtimes(to, time.Now(), time.Now()) != nil
	case output:
		is.Wanted = h.outputs.wanted(t)
	}
	if err := st.WriteMsg(wire.MsgOK, is); err != nil || !is.Wanted {
		return err
	}
	switch {
	case t.Sum != "":
		err = h.takeDir(pieces{st}, to, t.Sum)
	case m.Why != "":
		if err = os.MkdirAll(filepath.Dir(to), 0o700); err == nil {
			err = record.WriteFile(to+whySuffix, []byte(m.Why))
		}
	default:
		err = takeTree(pieces{st}, to)
	}
	if err != nil {
		return treeErr(err)
	}
	return st.WriteMsg(wire.MsgOK, struct{}{})
}

func treeErr(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errs.Wrap(errs.Exhausted, err, "the head's disk").Hint("make room on that file system, or check its quota")
	}
	return err
}

// takeTree unpacks a tree, whole and safe or not at all; an older one is replaced.
func takeTree(r io.Reader, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(to), ".saving-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	whole := filepath.Join(tmp, "new")
	if err := os.Mkdir(whole, 0o700); err != nil {
		return err
	}
	z, err := bundle.Decompress(r)
	if err != nil {
		return err
	}
	defer z.Close()
	if err := bundle.Unpack(z, whole); err != nil {
		return err
	}
	if err := syncTree(whole); err != nil {
		return err
	}
	if err := os.Rename(to, filepath.Join(tmp, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(whole, to); err != nil {
		return err
	}
	// Only the names: beside it others are taken, and what they have half is removed.
	if err := disk.Sync(filepath.Dir(to)); err != nil {
		return err
	}
	return disk.Sync(filepath.Dir(filepath.Dir(to)))
}

// syncTree makes what is below a directory safe.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir() && !d.Type().IsRegular():
			return nil
		}
		return disk.Sync(p)
	})
}

// takeDir keeps a working directory as it came: compressed.
func (h *head) takeDir(r io.Reader, to, sum string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing, once it has its name
	defer f.Close()
	z, err := bundle.Decompress(io.TeeReader(io.LimitReader(r, maxTrees), f))
	if err != nil {
		return err
	}
	defer z.Close()
	s := sha256.New()
	if _, err := io.Copy(s, io.LimitReader(z, maxTrees)); err != nil {
		return err
	}
	if hex.EncodeToString(s.Sum(nil)) != sum {
		return errs.New(errs.Corrupt, "a directory came with other contents than it was said to have")
	}
	if err := f.Sync(); err != nil { // a name that stays means that the contents do
		return err
	}
	if err := os.Rename(f.Name(), to); err != nil {
		return err
	}
	if err := disk.Sync(filepath.Dir(to)); err != nil {
		return err
	}
	h.tidyTrees(filepath.Dir(to))
	return nil
}

// tidyTrees removes those working directories that were not wanted for longest.
func (h *head) tidyTrees(dir string) {
	ents, _ := os.ReadDir(dir)
	var all []fs.FileInfo
	for _, e := range ents {
		if fi, err := e.Info(); err == nil && (wire.IsTreeSum(fi.Name()) || time.Since(fi.ModTime()) > time.Hour) {
			all = append(all, fi)
		}
	}
	slices.SortFunc(all, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for size := int64(0); len(all) > 0; all = all[1:] {
		if size += all[0].Size(); size > maxTrees {
			_ = os.Remove(filepath.Join(dir, all[0].Name()))
		}
	}
}

// getTree gives a tree.
func (h *head) getTree(ctx context.Context, st *session.Stream, t wire.Tree) error {
	from, err := h.treePath(t, rankRE)
	if err != nil {
		return err
	}
	if t.Sum == "" {
		var rank uint32
		_, _ = fmt.Sscanf(filepath.Base(from), "rank-%d", &rank)
		from = bundle.Part(filepath.Dir(from), rank)
	}
	f, err := os.Open(from)
	if err != nil {
		return errs.Wrap(errs.NotFound, err, "the head does not have it any more")
	}
	defer f.Close()
	if err := st.WriteMsg(wire.MsgOK, struct{}{}); err != nil {
		return err
	}
	if t.Sum != "" {
		_ = os.Chtimes(from, time.Now(), time.Now())
		_, err = io.Copy(pieces{st}, f)
	} else {
		var z io.WriteCloser
		if z, err = bundle.Compress(pieces{st}); err == nil {
			err = bundle.PackAll(ctx, z, from)
		}
		if err == nil {
			err = z.Close()
		}
	}
	if err != nil {
		_ = st.CloseWith(err)
	}
	return nil
}
