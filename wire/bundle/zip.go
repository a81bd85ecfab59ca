package bundle

import (
	"io"

	"github.com/klauspost/compress/zstd"

	"launcher/internal/errs"
)

// Compress packs a stream on its way; what does not get smaller by it passes as it is. Close
// ends the stream, not w.
func Compress(w io.Writer) (io.WriteCloser, error) {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "packing")
	}
	return z, nil
}

// Decompress reads what Compress wrote.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "unpacking")
	}
	return z.IOReadCloser(), nil
}
