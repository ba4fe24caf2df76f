// identity/renewal.ts in the simulation: certificates there outlive every run.
export const keepRenewed = () => ({ look: async () => {}, close: () => {} })
