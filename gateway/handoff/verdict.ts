// What two sites' words about one migration mean together. Pure.
// Enters: for each side what it last said, and where the VM is. Leaves: an event for transitions.ts, or null to wait.
// Always holds: the nodes are right, the gateway's record may be stale; where the words contradict each other nothing
// is guessed.
import type { MigrationResult, VmFacts } from '../../wire/control.ts'
import type { HandoffEventName } from './transitions.ts'

/**
 * `busy`: it says it is at it, or was told and has not ended. `silent`: not connected. `gone`: connected anew, and
 * does not know the migration. `doubt`: it ended without knowing who owns the VM (MIGRATION_DOUBT).
 */
export type SiteWord = 'busy' | 'silent' | 'gone' | 'completed' | 'failed' | 'doubt'

type Situation = {
  source: SiteWord
  target: SiteWord
  /** The VM as each site has it now; undefined where it has none, or is not connected. */
  sourceVm: VmFacts | undefined
  targetVm: VmFacts | undefined
}

/** The word that a result is. */
export const wordOf = (result: MigrationResult): SiteWord =>
  result.outcome === 'completed' ? 'completed' : result.error?.code === 'MIGRATION_DOUBT' ? 'doubt' : 'failed'

export function judgeMigration(situation: Situation): HandoffEventName | null {
  const { source, target } = situation
  switch (source) {
    case 'completed':
      if (target === 'completed') return 'bothCompleted'
      if (target === 'failed') return 'contradiction'
      return target === 'gone' || target === 'doubt' ? (isHome(situation.targetVm) ? 'bothCompleted' : 'contradiction') : 'oneCompleted'
    case 'failed':
      return target === 'completed' ? 'contradiction' : 'sourceFailed'
    case 'gone':
    case 'doubt':
      return judgeByPlace(situation)
    case 'busy':
      if (target === 'completed') return 'oneCompleted'
      return target === 'failed' || target === 'gone' || target === 'doubt' ? 'targetFailed' : null
    case 'silent':
      return target === 'completed' ? 'oneCompleted' : null
  }
}

/** The source cannot say: the target's word and the place of the VM must. */
function judgeByPlace({ source, target, sourceVm, targetVm }: Situation): HandoffEventName | null {
  const atSource = isHome(sourceVm)
  const atTarget = isHome(targetVm)
  if (target === 'silent') return null
  if (target === 'busy') return source === 'gone' && atSource ? 'sourceGone' : null
  if (target === 'completed') return atSource && isAlive(sourceVm) ? 'contradiction' : 'bothCompleted'
  if (target === 'failed') return atSource || source === 'doubt' ? 'sourceFailed' : 'contradiction'
  if (atSource && atTarget) return newerOf(sourceVm, targetVm)
  if (atTarget) return 'bothCompleted'
  return atSource ? 'sourceFailed' : 'contradiction'
}

/** Both list the VM: the higher epoch owns it; at the same epoch the one that runs. */
function newerOf(sourceVm: VmFacts | undefined, targetVm: VmFacts | undefined): HandoffEventName {
  const ahead = (targetVm?.epoch ?? 0) - (sourceVm?.epoch ?? 0)
  if (ahead !== 0) return ahead > 0 ? 'bothCompleted' : 'sourceFailed'
  const sourceRuns = isAlive(sourceVm)
  const targetRuns = isAlive(targetVm)
  if (sourceRuns === targetRuns) return 'contradiction'
  return targetRuns ? 'bothCompleted' : 'sourceFailed'
}

const isAlive = (vm: VmFacts | undefined): boolean => vm?.state === 'running' || vm?.state === 'suspended'

/**
 * A VM that is there in its own right, not half of a transfer. One whose QEMU has died (`failed`) is its site's all
 * the same.
 */
const isHome = (vm: VmFacts | undefined): boolean => vm !== undefined && vm.state !== 'incoming'
