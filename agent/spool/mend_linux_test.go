package spool

import (
	"os"
	"path/filepath"
	"testing"

	"launcher/wire"
)

// Whatever a disk gives back, a segment is mended to a row of whole frames.
func FuzzMend(f *testing.F) {
	frame := append(wire.LogFrame{Stream: 1, Length: 3}.Append(nil), "abc"...)
	f.Add(frame)
	f.Add(append(frame, frame[:20]...))
	f.Add(append(frame, frame[:34]...))
	f.Add([]byte("garbage that is longer than the header of a frame"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "0000000000000000.log")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		size, err := mend(file)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || int64(len(got)) != size {
			t.Fatalf("%d bytes, mended to %d, %v", len(got), size, err)
		}
		for len(got) > 0 {
			_, _, n, err := wire.ParseLogFrame(got)
			if err != nil || n == 0 {
				t.Fatalf("a broken frame after mending: %v", err)
			}
			got = got[n:]
		}
	})
}
