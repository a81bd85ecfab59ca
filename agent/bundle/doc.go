// Package bundle packs a directory into one stream and unpacks it elsewhere: the working_dir
// of tasks, for nodes that do not see it.
package bundle
