// The commit of this project that is measured; nothing if git does not know it.
import { execFileSync } from 'node:child_process'

export function commitOf(): { commit?: string } {
  try {
    const words = ['rev-parse', '--short', 'HEAD']
    return {
      commit: execFileSync('git', words, { cwd: import.meta.dirname, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim(),
    }
  } catch {
    return {}
  }
}
