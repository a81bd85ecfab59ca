//go:build !cgo || !linux

package detect

// sources is where devices are learnt: without cgo the driver's library cannot be
// loaded, and nvidia-smi is asked.
func sources(root string, env []string) []source { return []source{smi(root, env)} }

// layouts is where it is learnt how GPUs lie.
func layouts(env []string) []layoutSource { return []layoutSource{smiLayout(env)} }
