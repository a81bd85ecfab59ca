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
	rec, _, err := recoverDir(dir, false)
	return rec, err
}

// span is a segment and the first number that is not its own any more.
type span struct {
	segName
	limit uint64
}

const noLimit = ^uint64(0)

// recoverDir reads the newest snapshot and the records after it. stale names the files
// that no reader will need again. With cut it cuts a torn tail off and makes what it
// read safe, for a writer that goes on behind it.
func recoverDir(dir string, cut bool) (rec *Recovered, stale []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, errs.Wrap(errs.NotFound, err, "no journal")
		}
		return nil, nil, classify(err, "cannot read the journal")
	}
	rec = &Recovered{}
	var segs []segName
	var snaps []uint64
	for _, e := range entries {
		if n, ok := parseSegment(e.Name()); ok {
			segs = append(segs, n)
		} else if seq, ok := parseSnapshot(e.Name()); ok {
			snaps = append(snaps, seq)
		} else if cut && strings.HasPrefix(e.Name(), "snap-") && strings.HasSuffix(e.Name(), ".tmp") {
			stale = append(stale, e.Name())
		}
	}
	for _, s := range segs {
		rec.Epoch = max(rec.Epoch, s.epoch)
	}
	slices.Sort(snaps)
	if n := len(snaps); n > 0 {
		rec.SnapshotSeq = snaps[n-1]
		if rec.Snapshot, err = readSnapshot(dir, rec.SnapshotSeq); err != nil {
			return nil, nil, err
		}
		for _, s := range snaps[:n-1] {
			stale = append(stale, snapshotName(s))
		}
	}
	spans, dead := chain(segs, rec.SnapshotSeq)
	stale = append(stale, dead...)
	next := rec.SnapshotSeq + 1
	for i, s := range spans {
		if s.first > next {
			return nil, nil, errs.New(errs.Corrupt, "%s: the journal has a gap: record %d is in no segment, the next segment is %s", dir, next, s.name)
		}
		if next, err = readSegment(dir, s, i == len(spans)-1, cut, next, rec); err != nil {
			return nil, nil, err
		}
	}
	return rec, stale, nil
}

// chain puts the segments in order and gives each its limit: where a segment of a newer
// epoch, or the next of its own, begins. dead are those with nothing left of them, and
// those whose records are all in the snapshot of record snap.
func chain(segs []segName, snap uint64) (spans []span, dead []string) {
	slices.SortFunc(segs, func(a, b segName) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.epoch, b.epoch))
	})
	limit, epoch := uint64(noLimit), uint64(0)
	for _, s := range slices.Backward(segs) {
		// What a newer epoch wrote before here cuts everything of an older one off.
		if s.epoch < epoch || s.first >= limit || limit <= snap+1 {
			dead = append(dead, s.name)
			if s.epoch < epoch {
				continue
			}
		} else {
			spans = append(spans, span{s, limit})
		}
		limit, epoch = min(limit, s.first), s.epoch
	}
	slices.Reverse(spans)
	return spans, dead
}

// readSegment appends the records of s from next on to rec and gives the next number.
// Only the last segment may end in a torn tail.
func readSegment(dir string, s span, last, cut bool, next uint64, rec *Recovered) (uint64, error) {
	flag := os.O_RDONLY
	if cut && last {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(filepath.Join(dir, s.name), flag, 0)
	if err != nil {
		return 0, classify(err, "cannot read the journal")
	}
	defer f.Close()
	end, size, at, err := scanSegment(f, s, func(seq uint64, p []byte) error {
		if seq >= next {
			rec.Records = append(rec.Records, slices.Clone(p))
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	next = max(next, at)
	if !last {
		if at < s.limit {
			return 0, errs.New(errs.Corrupt, "%s: damaged at offset %d: record %d is not readable, though record %d follows in the next segment",
				f.Name(), end, at, s.limit)
		}
		return next, nil
	}
	if end < size {
		rec.Cut, rec.CutFile = size-end, f.Name()
	}
	if cut {
		if end < size {
			if err := f.Truncate(end); err != nil {
				return 0, classify(err, "cannot cut the torn tail of %s off", f.Name())
			}
		}
		// Its records may be in the page cache only; from now on they count.
		if err := dataSync(f); err != nil {
			return 0, classify(err, "cannot make %s safe", f.Name())
		}
	}
	return next, nil
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
