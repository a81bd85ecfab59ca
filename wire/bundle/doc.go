// Package bundle packs a directory into one stream and unpacks it elsewhere, for nodes that
// do not see it: the working_dir of tasks, the working directory of jobs, checkpoints. It
// also tells whether a node does see it.
package bundle
