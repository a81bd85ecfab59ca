package reclog

import (
	"encoding/binary"
	"io"

	"launcher/internal/errs"
)

// window is how much of a file is looked at in one go.
const window = 256 << 10

// Scan reads the records of f between base and size, hands each to fn, and gives the
// offset behind the last good one and the number of the record that would follow. A
// torn tail is where it ends, without an error; damage in the middle is errs.Corrupt.
func Scan(f io.ReaderAt, base, size int64, first uint64, fn func(seq uint64, payload []byte) error) (end int64, next uint64, err error) {
	r := reader{f: f, size: size}
	end, next = base, first
	for {
		rec, err := r.record(end)
		if err != nil {
			return end, next, err
		}
		if rec == nil {
			return end, next, r.damage(end, next)
		}
		if seq := binary.LittleEndian.Uint64(rec[12:]); seq != next {
			return end, next, errs.New(errs.Corrupt, "damaged at offset %d: record %d stands where record %d should", end, seq, next)
		}
		if fn != nil {
			if err := fn(next, rec[Header:len(rec):len(rec)]); err != nil {
				return end, next, err
			}
		}
		end += int64(len(rec))
		next++
	}
}

// reader reads a file in windows.
type reader struct {
	f    io.ReaderAt
	size int64
	at   int64 // offset of buf
	buf  []byte
}

// bytes gives n bytes at offset off, or nil when the file ends before.
func (r *reader) bytes(off int64, n int) ([]byte, error) {
	if off+int64(n) > r.size {
		return nil, nil
	}
	if off < r.at || off+int64(n) > r.at+int64(len(r.buf)) {
		want := int(min(max(int64(n), window), r.size-off))
		if cap(r.buf) < want {
			r.buf = make([]byte, want)
		}
		r.buf, r.at = r.buf[:want], off
		k, err := r.f.ReadAt(r.buf, off)
		if k < want {
			r.buf = r.buf[:k]
			if err != io.EOF {
				r.buf = r.buf[:0]
				return nil, errs.Wrap(errs.Unknown, err, "reading %d bytes at offset %d", want, off)
			}
			// The file is shorter than it was: its writer took back what it could not
			// write whole. What is not there any more is no record.
			r.size = off + int64(k)
			if k < n {
				return nil, nil
			}
		}
	}
	i := int(off - r.at)
	return r.buf[i : i+n], nil
}

// record gives the whole framed record at off if there is a good one, else nil.
func (r *reader) record(off int64) ([]byte, error) {
	h, err := r.bytes(off, Header)
	if h == nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(h)
	if n > MaxRecord || off+Header+int64(n) > r.size {
		return nil, nil
	}
	rec, err := r.bytes(off, Header+int(n))
	if rec == nil || binary.LittleEndian.Uint32(rec[4:]) != sum(off, rec) {
		return nil, err
	}
	return rec, nil
}

// damage looks behind a bad place for a record that was written after what should stand
// there was safe. next is the number that should stand there.
func (r *reader) damage(bad int64, next uint64) error {
	for off := bad + 1; off+Header <= r.size; off++ {
		h, err := r.bytes(off, Header)
		if err != nil {
			return err
		}
		// Numbers grow by one with at least a header each, which rules nearly every
		// place out without a checksum.
		seq := binary.LittleEndian.Uint64(h[12:])
		if seq < next || seq-next > uint64(off-bad)/Header+1 {
			continue
		}
		back := int64(binary.LittleEndian.Uint32(h[8:]))
		if off-back <= bad {
			continue // of the same write: it was never safe as a whole
		}
		rec, err := r.record(off)
		if err != nil {
			return err
		}
		if rec != nil {
			return errs.New(errs.Corrupt, "damaged at offset %d: record %d is not readable, but record %d at offset %d is",
				bad, next, seq, off)
		}
	}
	return nil
}
