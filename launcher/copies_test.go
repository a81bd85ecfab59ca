package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// forged is a copy with such entries, and its right sum.
func forged(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		h.Mode = 0o755
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(make([]byte, h.Size)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	return append(b.Bytes(), sum[:]...)
}

// TestBadCopies: nothing outside is written, and nothing is half there.
func TestBadCopies(t *testing.T) {
	top := tar.Header{Name: ".", Typeflag: tar.TypeDir}
	file := tar.Header{Name: ".", Typeflag: tar.TypeReg, Size: 10000}
	outside := t.TempDir()
	wrong := forged(t, file)
	wrong[len(wrong)-1] ^= 1
	flipped := forged(t, file)
	flipped[600] ^= 1
	for name, c := range map[string]struct {
		data []byte
		err  string
	}{
		"above":         {forged(t, top, tar.Header{Name: "../x", Typeflag: tar.TypeReg, Size: 1}), `an entry "../x"`},
		"absolute":      {forged(t, top, tar.Header{Name: outside + "/x", Typeflag: tar.TypeReg, Size: 1}), "an entry"},
		"by way of":     {forged(t, top, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, tar.Header{Name: "l/x", Typeflag: tar.TypeReg, Size: 1}), "cannot copy"},
		"device":        {forged(t, top, tar.Header{Name: "d", Typeflag: tar.TypeChar}), "of type 3"},
		"not the thing": {forged(t, tar.Header{Name: "x", Typeflag: tar.TypeReg}), `begins with "x"`},
		"empty":         {forged(t), "is empty"},
		"cut":           {forged(t, file)[:5000], "ended before its end"},
		"no sum":        {forged(t, file)[:10000+512+1024+240], "ended before its end"},
		"wrong sum":     {wrong, "not what was sent"},
		"flipped":       {flipped, "not what was sent"},
		"nothing":       {nil, "ended before its end"},
	} {
		t.Run(name, func(t *testing.T) {
			to := filepath.Join(t.TempDir(), "to")
			_, err := receiveTree(bytes.NewReader(c.data), to, "x")
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v, wanted %q", err, c.err)
			}
			for _, d := range []string{outside, filepath.Dir(to)} {
				left, _ := os.ReadDir(d)
				for _, e := range left {
					if !e.IsDir() {
						t.Errorf("%s is left in %s", e.Name(), d)
					}
				}
			}
		})
	}
}
