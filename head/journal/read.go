package journal

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"launcher/internal/errs"
)

// ReadFrom hands the safe records from number seq on to fn, in order, and gives the
// number of the one that follows; Changed tells when there is more. It is how followers
// get the journal. Records that a snapshot has replaced are errs.NotFound: the follower
// starts again from Newest.
func (j *Journal) ReadFrom(seq uint64, fn func(seq uint64, record []byte) error) (next uint64, err error) {
	safe := j.Safe()
	if seq > safe {
		return seq, nil
	}
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return seq, classify(err, "cannot read the journal")
	}
	var segs []segName
	for _, e := range entries {
		if n, ok := parseSegment(e.Name()); ok && n.epoch <= j.epoch {
			segs = append(segs, n)
		}
	}
	spans, _ := chain(segs, seq-1)
	next = seq
	for _, s := range spans {
		if s.first > next || next > safe {
			break
		}
		f, err := os.Open(filepath.Join(j.dir, s.name))
		if errors.Is(err, fs.ErrNotExist) {
			break // a snapshot was made meanwhile
		}
		if err != nil {
			return next, classify(err, "cannot read the journal")
		}
		_, _, _, err = scanSegment(f, s, func(n uint64, p []byte) error {
			if n > safe {
				return errLimit
			}
			if n < next {
				return nil
			}
			next = n + 1
			return fn(n, p)
		})
		_ = f.Close()
		if err != nil {
			return next, err
		}
	}
	if next <= safe {
		return next, errs.New(errs.NotFound, "journal record %d is in a snapshot", next)
	}
	return next, nil
}

// Recent gives safe records from number seq on, of about so many bytes at most, as far as
// they are in memory; ok is false when they are not, and ReadFrom has them.
func (j *Journal) Recent(seq uint64, most int) (records [][]byte, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if seq > j.safe {
		return nil, true
	}
	have := uint64(len(j.recent))
	if back := j.safe - seq + 1; back <= have {
		all := j.recent[have-back:]
		size, n := 0, 0
		for n < len(all) && (n == 0 || size+len(all[n]) <= most) {
			size += len(all[n])
			n++
		}
		return slices.Clone(all[:n]), true
	}
	return nil, false
}

// Newest gives the newest snapshot and the number of the last record in it; nil, 0 when
// none has been made.
func (j *Journal) Newest() ([]byte, uint64, error) {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, 0, classify(err, "cannot read the journal")
	}
	var newest uint64
	for _, e := range entries {
		if s, ok := parseSnapshot(e.Name()); ok {
			newest = max(newest, s)
		}
	}
	if newest == 0 {
		return nil, 0, nil
	}
	b, err := readSnapshot(j.dir, newest)
	return b, newest, err
}
