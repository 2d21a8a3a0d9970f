"""A PACS by DICOMweb: series are found and fetched, results stored."""
