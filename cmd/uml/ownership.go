package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"docker-usermode-linux/internal/disk"
	"docker-usermode-linux/internal/supervisor"
	"docker-usermode-linux/internal/userns"
)

// Theory of operation
//
// The files of a root file system have many owners, and those of a plain user have one. So that a guest finds the owners
// that it should, and can change them, its files are in one of two places:
//
//	subids  in a directory, and the process that makes it, boots a guest on it or removes it is root of a user namespace
//	        with the user's subordinate ids (package userns): it executes itself anew there before it does anything else
//	disk    in an ext4 file system, in a file of the user's (package disk)
//
// Failing both, all files belong to the user (plain). The choice is made by what the host has, in this order, unless the
// user makes it; root needs none. Processes that only ask a guest or stop it need no namespace: the guest's are of the
// same user to them.

// The values of --ownership.
const (
	ownAuto   = "auto"
	ownSubIDs = "subids"
	ownDisk   = "disk"
	ownPlain  = "plain"
)

// ownershipVariable is the option, too.
const ownershipVariable = "OWNERSHIP"

// ownership is how files get their owners, as the user wants it.
type ownership struct{ given string }

// addTo adds the option of commands that boot a guest, or with disk of those that make a root file system.
func (o *ownership) addTo(flags *pflag.FlagSet, disk bool) {
	about := "`WAY` to have true owners of files in a directory: auto, subids or plain; default is the best that works"
	if disk {
		about = "`WAY` in which files keep their owners: auto, subids, disk or plain; default is the best that works"
	}
	flags.StringVar(&o.given, "ownership", "", fmt.Sprintf("%s (%s)", about, ownershipVariable))
}

// value is what was given by the option, or else by the variable.
func (o ownership) value() (string, error) {
	all := []string{ownAuto, ownSubIDs, ownDisk, ownPlain}
	name, value := "--ownership", o.given
	if value == "" {
		name, value = ownershipVariable, cmp.Or(os.Getenv(ownershipVariable), ownAuto)
	}
	if !slices.Contains(all, value) {
		return "", usageError(fmt.Errorf("%s=%q: write %s", name, value, strings.Join(all, ", ")))
	}
	return value, nil
}

// enter makes this process one that can give a file to any owner: unless it can already, the program is executed anew, with
// these arguments. An error says why that cannot be.
//
// Preconditions: nothing has been done that the new program would do once more.
func enter(ctx context.Context, argv []string) error {
	mapping, err := userns.Find()
	if err != nil || !mapping.Needed() {
		return err
	}
	return mapping.Enter(ctx, argv, os.Environ())
}

// orDisk is the way around a directory that cannot have the right owners.
const orDisk = "or keep it on a disk image, which needs none of that (uml rootfs import --size 4G; package e2fsprogs)"

// ownGuest sees to the owners of a guest's files, before anything else is done. It returns what there is to say of it.
func ownGuest(ctx context.Context, root string, how ownership) ([]supervisor.Note, error) {
	value, err := how.value()
	if err != nil || !isDir(root) {
		return nil, err // a disk, or a mistake that is told later
	}
	if how.given == ownDisk {
		return nil, usageError(fmt.Errorf("--ownership=%s is for a disk image, and %s is a directory: make one with uml rootfs, from "+
			"the archive or the image that the directory is from", ownDisk, root))
	}
	notes, err := ownDirectory(ctx, value)
	if risk := setuidRisk(root); risk != "" && err == nil {
		notes = append(notes, supervisor.Note{Text: risk})
	}
	return notes, err
}

// ownDirectory is ownGuest for a directory.
func ownDirectory(ctx context.Context, value string) ([]supervisor.Note, error) {
	if value == ownPlain {
		if os.Geteuid() == 0 {
			return nil, nil
		}
		return []supervisor.Note{{Text: "all files of the guest are this user's, as OWNERSHIP says"}}, nil
	}
	err := enter(ctx, os.Args)
	if err != nil && value == ownSubIDs {
		return nil, fmt.Errorf("--ownership=%s: %w", value, err)
	}
	if err != nil {
		return []supervisor.Note{{Warning: true, Text: fmt.Sprintf("all files of the guest are this user's, and stay so: "+
			"programs that need another owner fail; to mend it: %v; %s", err, orDisk)}}, nil
	}
	if user, entered := userns.Outside(); entered {
		return []supervisor.Note{{Text: fmt.Sprintf("files have their true owners, by the subordinate ids of user %d", user)}}, nil
	}
	return nil, nil // root
}

// diskNames are how the names of disk images end.
var diskNames = []string{".img", ".ext4", ".raw"}

// ownTarget decides what becomes of a target: to.Disk and to.Owner. argv executes the same once more, see enter. note is
// what to say of it.
func ownTarget(ctx context.Context, to *rootfsTarget, how ownership, argv []string) (note string, err error) {
	value, err := how.value()
	if err != nil {
		return "", err
	}
	if value == ownDisk || to.Size != 0 || slices.Contains(diskNames, filepath.Ext(to.Path)) {
		if how.given == ownSubIDs || how.given == ownPlain {
			return "", usageError(fmt.Errorf("--ownership=%s is for a directory, and %s is to be a disk image (by --size, or a name in %s)",
				how.given, to.Path, strings.Join(diskNames, ", ")))
		}
		to.Disk = true
		return "", disk.Usable()
	}
	if value == ownPlain {
		return "", nil
	}
	if err = enter(ctx, argv); err == nil {
		to.Owner = true
		if user, entered := userns.Outside(); entered {
			note = fmt.Sprintf("files get their true owners, by the subordinate ids of user %d", user)
		}
		return note, nil
	}
	if value == ownSubIDs {
		return "", fmt.Errorf("--ownership=%s: %w", value, err)
	}
	noTools := disk.Usable()
	if noTools == nil {
		to.Disk = true
		return fmt.Sprintf("%s becomes a disk image, as files in a directory could not have their true owners: %v", to.Path, err), nil
	}
	return fmt.Sprintf("WARNING: all files become this user's, and programs in the guest that need another owner fail; to mend it: "+
		"%v; or have a disk image made: %v", err, noTools), nil
}

// isDir says whether a path leads to a directory.
func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
