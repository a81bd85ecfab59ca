package journal

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"launcher/internal/errs"
	"launcher/wire/reclog"
)

// Load reads the journal in dir and changes nothing: it is for looking at the journal of
// a cluster that is down.
func Load(dir string) (*Recovered, error) {
	f, err := find(dir)
	if err != nil {
		return nil, err
	}
	return &f.Recovered, nil
}

// found is what is in a journal's directory.
type found struct {
	Recovered
	tail  uint64   // first number of the last segment's records
	stale []string // files that no reader needs once the last segment has been rewritten
	tmps  []string // unfinished files of writers before, or of one that replaces us
}

// span is a segment and the first number that is not its own any more.
type span struct {
	segName
	limit uint64
}

const noLimit = ^uint64(0)

// find reads the newest snapshot and the records after it. A writer that is being
// replaced may prune meanwhile: then it looks again.
func find(dir string) (f *found, err error) {
	for range 5 {
		if f, err = findOnce(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	return nil, err
}

func findOnce(dir string) (*found, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errs.Wrap(errs.NotFound, err, "no journal")
		}
		return nil, classify(err, "cannot read the journal")
	}
	f := &found{}
	var segs []segName
	var snaps []uint64
	for _, e := range entries {
		if n, ok := parseSegment(e.Name()); ok {
			segs = append(segs, n)
		} else if seq, ok := parseSnapshot(e.Name()); ok {
			snaps = append(snaps, seq)
		} else if strings.HasSuffix(e.Name(), ".tmp") {
			f.tmps = append(f.tmps, e.Name())
		}
	}
	for _, s := range segs {
		f.Epoch = max(f.Epoch, s.epoch)
	}
	slices.Sort(snaps)
	if n := len(snaps); n > 0 {
		f.SnapshotSeq = snaps[n-1]
		if f.Snapshot, err = readSnapshot(dir, f.SnapshotSeq); err != nil {
			return nil, err
		}
		for _, s := range snaps[:n-1] {
			f.stale = append(f.stale, snapshotName(s))
		}
	}
	spans, dead := chain(segs, f.SnapshotSeq)
	f.stale = append(f.stale, dead...)
	f.tail = f.SnapshotSeq + 1
	for i, s := range spans {
		if s.first > f.Last()+1 {
			return nil, errs.New(errs.Corrupt, "%s: the journal has a gap: record %d is in no segment, the next segment is %s", dir, f.Last()+1, s.name)
		}
		if i == len(spans)-1 {
			f.tail = max(f.tail, s.first)
			f.stale = append(f.stale, s.name)
		}
		if err := f.read(dir, s, i == len(spans)-1); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// chain puts the segments in order and gives each its limit, where the next begins. dead
// are those of which nothing counts: a newer epoch began before them or where they do,
// or their records are all in the snapshot of record snap.
func chain(segs []segName, snap uint64) (spans []span, dead []string) {
	slices.SortFunc(segs, func(a, b segName) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.epoch, b.epoch))
	})
	var live []segName
	for _, s := range segs {
		if n := len(live); n > 0 && s.epoch < live[n-1].epoch {
			dead = append(dead, s.name)
		} else {
			live = append(live, s)
		}
	}
	for i, s := range live {
		limit := uint64(noLimit)
		if i+1 < len(live) {
			limit = live[i+1].first
		}
		if limit <= max(s.first, snap+1) {
			dead = append(dead, s.name)
		} else {
			spans = append(spans, span{s, limit})
		}
	}
	return spans, dead
}

// read appends the records of s that are not there yet. Only the last segment may end in
// a torn tail.
func (r *found) read(dir string, s span, last bool) error {
	f, err := os.Open(filepath.Join(dir, s.name))
	if err != nil {
		return classify(err, "cannot read the journal")
	}
	defer f.Close()
	end, size, next, err := scanSegment(f, s, func(seq uint64, p []byte) error {
		if seq > r.Last() {
			r.Records = append(r.Records, slices.Clone(p))
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case last && end < size:
		r.Cut, r.CutFile = size-end, f.Name()
	case !last && next < s.limit:
		return errs.New(errs.Corrupt, "%s: damaged at offset %d: record %d is not readable, though record %d follows in the next segment",
			f.Name(), end, next, s.limit)
	}
	return nil
}

var errLimit = errors.New("the segment's limit")

// scanSegment hands the records of s before its limit to fn, and gives the offset
// behind the last one, the size of the file, and the number that follows.
func scanSegment(f *os.File, s span, fn func(seq uint64, p []byte) error) (end, size int64, next uint64, err error) {
	torn, err := checkHeader(f, s.segName)
	if err != nil {
		return 0, 0, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return 0, 0, 0, classify(err, "cannot read the journal")
	}
	if torn {
		return 0, st.Size(), s.first, nil
	}
	end, next, err = reclog.Scan(f, segHeader, st.Size(), s.first, func(seq uint64, p []byte) error {
		if seq >= s.limit {
			return errLimit
		}
		return fn(seq, p)
	})
	switch {
	case err == errLimit:
		err = nil
	case errs.Is(err, errs.Corrupt) && next >= s.limit:
		err = nil // what a replaced writer left behind the limit is nobody's business
	case err != nil:
		err = errs.Wrap(errs.Unknown, err, "%s", f.Name())
	}
	return end, st.Size(), next, err
}
