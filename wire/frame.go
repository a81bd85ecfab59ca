package wire

import (
	"encoding/binary"
	"io"

	"launcher/internal/errs"
)

// A frame is
//
//	length u32  of what follows: type, flags and body (so at least 4)
//	type   u16  the message type
//	flags  u16  zero; reserved
//	body        length-4 bytes
//
// with little-endian integers. MaxFrame bounds a frame so that garbage on a socket
// cannot make us allocate: bulk data goes in streams, not in frames.
const (
	FrameHeader = 8
	MaxFrame    = 16 << 20
)

// AppendFrame appends a frame to b.
func AppendFrame(b []byte, typ uint16, body []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)+4))
	b = binary.LittleEndian.AppendUint16(b, typ)
	b = binary.LittleEndian.AppendUint16(b, 0)
	return append(b, body...)
}

// WriteFrame writes one frame with one Write.
func WriteFrame(w io.Writer, typ uint16, body []byte) error {
	if len(body)+4 > MaxFrame {
		return errs.New(errs.Invalid, "a frame of %d bytes, the limit is %d", len(body), MaxFrame)
	}
	_, err := w.Write(AppendFrame(make([]byte, 0, FrameHeader+len(body)), typ, body))
	return err
}

// ReadFrame reads one frame. io.EOF means the stream ended between frames; a frame
// cut short is io.ErrUnexpectedEOF.
func ReadFrame(r io.Reader) (typ uint16, body []byte, err error) {
	var h [FrameHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(h[:])
	if n < 4 || n > MaxFrame {
		return 0, nil, errs.New(errs.Corrupt, "a frame of length %d, allowed are 4 to %d: the other side is not launcher, or not this version", n, MaxFrame)
	}
	body, err = readBody(r, int(n-4))
	return binary.LittleEndian.Uint16(h[4:]), body, err
}

// readBody grows with what really arrives, so that a hostile length costs nothing.
func readBody(r io.Reader, n int) ([]byte, error) {
	const step = 64 << 10
	b := make([]byte, 0, min(n, step))
	for len(b) < n {
		k := min(n-len(b), max(step, len(b)))
		b = append(b, make([]byte, k)...)
		if _, err := io.ReadFull(r, b[len(b)-k:]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return b, nil
}
