// Takes a VM back at the source: whatever QEMU's migration is doing, it ends cancelled and the guest runs, or sleeps if
// it slept. One that is over stays so. May be called only while the source owns the VM (states before RELINQUISHED, or
// RECLAIMED).
import { eventually } from '../../ops/deadline.ts'
import type { QmpClient } from '../qmp/client.ts'
import { qmpCommands } from '../qmp/commands.ts'
import { guestState } from '../vm/run-state.ts'

const ENDED = new Set(['none', 'cancelled', 'failed', 'completed'])
const TIMEOUT_MS = 30_000

export async function resumeSource(qmp: QmpClient): Promise<void> {
  const commands = qmpCommands(qmp)
  const { status } = await commands.queryMigrate()
  if (!ENDED.has(status)) await commands.migrateCancel()
  await eventually(async () => (ENDED.has((await commands.queryMigrate()).status) ? true : undefined), {
    ms: TIMEOUT_MS,
    what: 'the end of the cancelled migration',
    everyMs: 20,
    code: 'QEMU_TIMEOUT',
  })
  // A cancelled or failed migration resumes the guest by itself unless it was stopped before (cold); `cont` is
  // idempotent.
  await eventually(
    async () => {
      const { status } = await commands.queryStatus()
      if (guestState(status) !== 'paused') return true
      await commands.cont()
      return undefined
    },
    { ms: TIMEOUT_MS, what: 'the guest to run again', everyMs: 20, code: 'QEMU_TIMEOUT' },
  )
}
