// gateway/relay/sessions.ts with the world holding on to it: a lying gateway lets sites meet for migrations that there
// are none of.
import { createSessions as create, type Sessions } from '../../../../gateway/relay/sessions.ts'
import type { Clock } from '../../../../ops/clock.ts'
import { onSessions } from '../agents.ts'

export * from '../../../../gateway/relay/sessions.ts'

export const createSessions = (clock: Clock): Sessions => onSessions(create(clock))
