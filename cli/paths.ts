// Default folders. Enters: the user and the environment. Leaves: folders. Pure.
// root: the system's folders (FHS). Other users: the XDG base directories.
import type { Io } from './io.ts'

type Paths = { configDir: string; stateDir: string; runDir: string }

export function defaultPaths({ env, isRoot, homeDir }: Pick<Io, 'env' | 'isRoot' | 'homeDir'>): Paths {
  if (isRoot && !env['GODWIT_HOME']) return { configDir: '/etc/godwit', stateDir: '/var/lib/godwit', runDir: '/run/godwit' }
  // GODWIT_HOME puts everything below one folder: for tests, also as root.
  const home = env['GODWIT_HOME']
  if (home) return { configDir: `${home}/config`, stateDir: `${home}/state`, runDir: `${home}/run` }
  const base = (name: string, fallback: string) => (env[name]?.startsWith('/') ? env[name] : `${homeDir}/${fallback}`)
  const stateDir = `${base('XDG_STATE_HOME', '.local/state')}/godwit`
  const runtime = env['XDG_RUNTIME_DIR']
  return {
    configDir: `${base('XDG_CONFIG_HOME', '.config')}/godwit`,
    stateDir,
    runDir: runtime?.startsWith('/') ? `${runtime}/godwit` : `${stateDir}/run`,
  }
}
