//go:build !linux

package journal

func dataSync(f file) error { return f.Sync() }
