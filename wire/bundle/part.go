package bundle

import (
	"fmt"
	"os"
	"path/filepath"
)

// Part is what a rank resumes from in the directory of a checkpoint's step: its own part, or,
// where it saved none, that of the first rank that did.
func Part(step string, rank uint32) string {
	if step == "" {
		return ""
	}
	own := filepath.Join(step, fmt.Sprintf("rank-%d", rank))
	if st, err := os.Stat(own); err == nil && st.IsDir() {
		return own
	}
	all, _ := filepath.Glob(filepath.Join(step, "rank-*"))
	first, n := step, -1
	for _, d := range all {
		var k int
		if _, err := fmt.Sscanf(filepath.Base(d), "rank-%d", &k); err == nil && (n < 0 || k < n) {
			first, n = d, k
		}
	}
	return first
}
