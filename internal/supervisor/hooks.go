package supervisor

import (
	"github.com/rs/zerolog"

	"docker-usermode-linux/internal/boot"
	"docker-usermode-linux/internal/config"
)

// hooks are the user's scripts as the guest stage gets them.
func hooks(h config.Hooks) []boot.Hook {
	var all []boot.Hook
	for _, hook := range h.Start {
		all = append(all, boot.Hook{Stage: boot.StageStart, Name: hook.Name, Script: hook.Script})
	}
	for _, hook := range h.Stop {
		all = append(all, boot.Hook{Stage: boot.StageStop, Name: hook.Name, Script: hook.Script})
	}
	return all
}

// warnHooks names the files in HOOKS that do not run.
func warnHooks(h config.Hooks, log zerolog.Logger) {
	for _, s := range h.Skipped {
		event := log.Info()
		if s.Debris {
			event = log.Debug()
		}
		event.Str("hook", s.Name).Str("reason", s.Reason).Msg("hook is ignored")
	}
}
