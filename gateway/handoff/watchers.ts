// Those who follow a migration (the command line's progress bar).
// Enters: progress, states, the end. Leaves: for each follower a sequence of events.
// Always holds: a slow follower costs a bounded amount: of progress it gets the latest, of states all (there are few),
// and the end is the last.
import type { MigrationEvent, MigrationRecord, MigrationState } from '../../wire/admin.ts'
import type { MigrationProgress, Side } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'

const FOLLOWERS_MAX = 64

type Follower = { states: MigrationState[]; progress: Map<Side, MigrationProgress>; end: MigrationRecord | undefined; wake: () => void }

export type Watchers = {
  progress(progress: MigrationProgress): void
  state(state: MigrationState): void
  end(record: MigrationRecord): void
  follow(signal: AbortSignal): AsyncGenerator<MigrationEvent>
}

export function createWatchers(): Watchers {
  const followers = new Set<Follower>()
  const tell = (change: (follower: Follower) => void) => {
    for (const follower of followers) {
      change(follower)
      follower.wake()
    }
  }
  return {
    progress: progress => tell(follower => follower.progress.set(progress.side, progress)),
    state: state => tell(follower => follower.states.push(state)),
    end: record => tell(follower => (follower.end = record)),
    async *follow(signal) {
      if (followers.size >= FOLLOWERS_MAX)
        throw new GodwitError('LIMIT_EXCEEDED', `more than ${FOLLOWERS_MAX} clients follow this migration`)
      const follower: Follower = { states: [], progress: new Map(), end: undefined, wake: () => {} }
      const onAbort = () => follower.wake()
      followers.add(follower)
      signal.addEventListener('abort', onAbort, { once: true })
      try {
        while (!signal.aborted) {
          for (const state of follower.states.splice(0)) yield { event: 'state', state }
          for (const [side, progress] of follower.progress) {
            follower.progress.delete(side)
            yield { event: 'progress', progress }
          }
          if (follower.end) return yield { event: 'end', migration: follower.end }
          const idle = follower.states.length === 0 && follower.progress.size === 0
          if (idle && !signal.aborted) await new Promise<void>(resolve => (follower.wake = resolve))
        }
      } finally {
        followers.delete(follower)
        signal.removeEventListener('abort', onAbort)
      }
    },
  }
}
