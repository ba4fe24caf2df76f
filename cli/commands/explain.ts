// godwit explain: shows why the policy moves a VM or lets it stay.
import type { LiveExplanation } from '../../gateway/policy/live.ts'
import { askGateway } from '../client.ts'
import { command, gatewayOptions, shared } from '../command.ts'
import { json, table } from '../output.ts'

export const explain = command({
  name: 'explain',
  summary: 'show why the policy moves a VM or lets it stay',
  details: 'Shows each gate that a handoff must pass, in order, with its current value and its limit.',
  positionals: [{ name: 'VM', help: 'name of the VM' }],
  options: { json: shared.json, ...gatewayOptions },
  examples: ['godwit explain web-1', 'godwit explain web-1 --json'],
  run: async ({ options, args, io }) => {
    const path = `/v1/vms/${encodeURIComponent(args[0] ?? '')}/explain`
    const answer = await askGateway<LiveExplanation>(io, options, { path })
    io.out(options.json ? json(answer) : renderExplanation(answer))
    return 0
  },
})

/** Pure. */
function renderExplanation({ vm, policy, from, userSite, target, because, gates, inputs, lastMove }: LiveExplanation): string {
  const where = `${vm}: site ${from ?? 'unknown'}, site of its user ${userSite ?? 'unknown'}, best site ${target ?? 'unknown'} (policy ${policy})\n`
  const number = (value: number | null, unit: string) =>
    value === null ? '-' : `${Math.round(value * 100) / 100}${unit ? ` ${unit}` : ''}`
  const rows = gates.map(({ gate, isOpen, rule, value, limit, unit }) => [
    isOpen ? 'open' : 'CLOSED',
    gate,
    number(value, unit),
    number(limit, unit),
    rule,
  ])
  const { cost } = inputs
  const price = cost ? `predicted migration: ${Math.round(cost.totalMs)} ms in total, ${Math.round(cost.downtimeMs)} ms downtime\n` : ''
  const last = lastMove ? `last move: ${lastMove.from} -> ${lastMove.to}: ${lastMove.because}\n` : ''
  const unfit = inputs.unfitSites.length > 0 ? `sites that rejected it recently: ${inputs.unfitSites.join(', ')}\n` : ''
  return `${where}${because}\n${price}${unfit}${last}\n${table(['', 'GATE', 'NOW', 'LIMIT', 'RULE'], rows)}`
}
