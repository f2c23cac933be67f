"""The postcards archive: drawn pictures of invented landmarks, and questions with known answers."""
