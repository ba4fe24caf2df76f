// The `policy` part of gateway.yaml: the settings of the handoff policy, what each VM wants, and what is known of the
// network. No IO here.
import { Id } from '../../wire/control.ts'
import { z } from '../../wire/schema.ts'
import { OPERATIONAL_POLICIES, PolicySettings, VmPolicy } from './settings.ts'

const { policy: _, ...settings } = PolicySettings.shape

/** What an operator knows of the way between two sites; measurements replace it. */
const LinkFacts = z.strictObject({
  from: Id,
  to: Id,
  rttMs: z.number().nonnegative().max(60_000).optional(),
  bandwidthBytesPerSecond: z.number().positive().optional(),
})

export const PolicyConfig = z.strictObject({
  /** For VMs that do not name another. */
  name: z.enum(OPERATIONAL_POLICIES).default('regret'),
  ...settings,
  vms: z.record(Id, VmPolicy).default({}),
  links: z.array(LinkFacts).max(4096).default([]),
})
export type PolicyConfig = z.output<typeof PolicyConfig>
