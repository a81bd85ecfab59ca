package journal

import (
	"fmt"
	"os"
	"path/filepath"

	"launcher/internal/errs"
	"launcher/wire/reclog"
)

const snapHeader = reclog.SnapshotHeader

// Snapshot keeps state as what records up to seq, all of them safe, add up to, and then
// removes the segments that nobody needs any more. One caller at a time. It may take as
// long as the disk does; appends go on meanwhile.
func (j *Journal) Snapshot(seq uint64, state []byte) error {
	j.mu.Lock()
	safe, failed := j.safe, j.failed
	j.mu.Unlock()
	if failed != nil {
		return failed
	}
	if seq > safe {
		return errs.New(errs.Internal, "a snapshot of record %d, of which only %d are safe", seq, safe)
	}
	path := filepath.Join(j.dir, snapshotName(seq))
	tmp := fmt.Sprintf("%s.%d.tmp", path, j.epoch)
	if err := writeSnapshot(tmp, seq, state); err != nil {
		return err
	}
	if err := j.fenced(); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		if fenced := j.fenced(); errs.Is(fenced, errs.Fenced) {
			return fenced // the newer writer tidied up
		}
		return classify(err, "cannot keep a snapshot of the journal")
	}
	if err := syncDir(j.dir); err != nil {
		return err
	}
	// What the snapshot replaces goes only if no newer writer may be looking for it.
	if err := j.fenced(); err != nil {
		return err
	}
	j.mu.Lock()
	j.rotate = true
	j.poke()
	j.mu.Unlock()
	return j.prune(seq)
}

// prune removes what the snapshot of record seq makes superfluous. The segment being
// written stays; it goes at the next snapshot or Open.
func (j *Journal) prune(seq uint64) error {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return classify(err, "cannot read the journal")
	}
	var segs []segName
	for _, e := range entries {
		if n, ok := parseSegment(e.Name()); ok && n.epoch <= j.epoch {
			segs = append(segs, n)
		} else if s, ok := parseSnapshot(e.Name()); ok && s < seq {
			_ = os.Remove(filepath.Join(j.dir, e.Name()))
		}
	}
	_, dead := chain(segs, seq)
	for _, name := range dead {
		_ = os.Remove(filepath.Join(j.dir, name))
	}
	return nil
}

func writeSnapshot(tmp string, seq uint64, state []byte) (err error) {
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return classify(err, "cannot keep a snapshot of the journal")
	}
	if _, err = f.Write(snapshotHeader(seq, state)); err == nil {
		_, err = f.Write(state)
	}
	if err == nil {
		err = f.Sync()
	}
	if err2 := f.Close(); err == nil {
		err = err2
	}
	if err != nil {
		_ = os.Remove(tmp)
		return classify(err, "cannot keep a snapshot of the journal")
	}
	return nil
}

func snapshotHeader(seq uint64, state []byte) []byte {
	return reclog.AppendSnapshotHeader(nil, seq, state)
}

func readSnapshot(dir string, seq uint64) ([]byte, error) {
	path := filepath.Join(dir, snapshotName(seq))
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, classify(err, "cannot read the journal")
	}
	if len(b) < snapHeader || string(b[:snapHeader]) != string(snapshotHeader(seq, b[snapHeader:])) {
		return nil, errs.New(errs.Corrupt, "%s: damaged: not the snapshot of record %d", path, seq)
	}
	return b[snapHeader:], nil
}
