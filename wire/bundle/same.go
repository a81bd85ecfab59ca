package bundle

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Token tells a directory from all others with the same path on other machines: its inode
// and that of the file in it that has not been changed for longest, which machines that
// share it see alike. Nothing is written, so nothing has to be removed. "" = it cannot be
// read.
func Token(dir string) string {
	ents, err := os.ReadDir(dir)
	if err != nil {
		return ""
	}
	var oldest os.FileInfo
	for _, e := range ents {
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() && (oldest == nil || fi.ModTime().Before(oldest.ModTime())) {
			oldest = fi
		}
	}
	name := ""
	if oldest != nil {
		name = oldest.Name()
	}
	return token(dir, name)
}

func token(dir, name string) string {
	d, err := os.Stat(dir)
	if err != nil || !d.IsDir() {
		return ""
	}
	in := uint64(0)
	if name != "" {
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return ""
		}
		in = inode(fi)
	}
	return fmt.Sprintf("%d %d %s", inode(d), in, name)
}

func inode(fi os.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// Same reports whether dir, here, is the one that the token was made of.
func Same(dir, tok string) bool {
	parts := strings.SplitN(tok, " ", 3)
	return len(parts) == 3 && !strings.Contains(parts[2], "/") && token(dir, parts[2]) == tok
}
