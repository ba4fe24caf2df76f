// godwit doctor: checks whether this host is ready, and shows what to fix.
import { EXIT } from '../../wire/errors.ts'
import { command, shared } from '../command.ts'
import type { Check } from '../doctor/check.ts'
import { clean, json } from '../output.ts'

export const doctor = command({
  name: 'doctor',
  summary: 'check whether this host is ready, and show what to fix',
  details: 'Changes nothing. Each check is ok, warn (works, but could work better) or fail. Exit code 0, or 3 if a check fails.',
  options: { json: shared.json },
  examples: ['godwit doctor', 'godwit doctor --json'],
  run: async ({ options, io }) => {
    const { runChecks } = await import('../doctor/doctor.ts')
    const checks = await runChecks(io)
    const hasFailed = checks.some(({ state }) => state === 'fail')
    io.out(options.json ? json({ ready: !hasFailed, checks }) : renderChecks(checks))
    return hasFailed ? EXIT.refused : EXIT.ok
  },
})

/** Pure. */
export function renderChecks(checks: readonly Check[]): string {
  const width = Math.max(...checks.map(({ name }) => name.length)) + 2
  const lines = checks.flatMap(({ name, state, detail, advice }) => [
    `${state.padEnd(6)}${name.padEnd(width)}${clean(detail)}`,
    ...(advice === undefined ? [] : [`${' '.repeat(6 + width)}-> ${clean(advice)}`]),
  ])
  const count = (wanted: string) => checks.filter(({ state }) => state === wanted).length
  return `${lines.join('\n')}\n\n${count('ok')} ok, ${count('warn')} warn, ${count('fail')} fail\n`
}
