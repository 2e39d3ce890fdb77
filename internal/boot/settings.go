// Package boot carries what the supervisor hands to the guest stage: the initramfs archive with the guest
// binary, and the settings of this one boot, which travel inside it and so never show on a command line,
// in the environment of a process or on a disk.
package boot

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// SettingsPath is where the guest stage finds its settings in the initramfs.
const SettingsPath = "/settings.json"

// Settings is all that the guest stage has to know of one boot.
type Settings struct {
	// Hostname becomes the guest's; empty leaves the root file system's own.
	Hostname string `json:"hostname,omitempty"`
	// Network is nil for a guest without a network.
	Network *Network `json:"network,omitempty"`
	// RootPassword in clear text; empty means that the password login of root is to be off.
	RootPassword string `json:"root_password,omitempty"`
	// DefaultPassword is the publicly documented password. A root account that still has it is closed again
	// as soon as RootPassword is empty.
	DefaultPassword string `json:"default_password,omitempty"`
	// PasswordForced says that the user chose RootPassword: it then replaces whatever password root has.
	// Otherwise it is set only where root has none.
	PasswordForced bool `json:"password_forced,omitempty"`
	// AuthorizedKeys are lines of an authorized_keys file (sshd(8)) for root.
	AuthorizedKeys []string `json:"authorized_keys,omitempty"`
}

// Network is the static configuration of the guest's only NIC.
type Network struct {
	// Device is the name that the NIC gets, whatever the kernel called it.
	Device string `json:"device"`
	// Address of the guest with the length of its prefix.
	Address netip.Prefix `json:"address"`
	// Gateway is the default route's next hop.
	Gateway netip.Addr `json:"gateway"`
	// Nameservers and Search go into resolv.conf(5), Options too ("ndots:2").
	Nameservers []netip.Addr `json:"nameservers,omitempty"`
	Search      []string     `json:"search,omitempty"`
	Options     []string     `json:"options,omitempty"`
}

// ParseSettings reads what Marshal wrote.
func ParseSettings(data []byte) (Settings, error) {
	var s Settings
	if err := json.Unmarshal(data, &s); err != nil {
		return Settings{}, fmt.Errorf("parse %s: %w", SettingsPath, err)
	}
	return s, nil
}

// Marshal is the inverse of ParseSettings.
func (s Settings) Marshal() ([]byte, error) {
	return json.Marshal(s)
}
